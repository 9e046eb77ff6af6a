"use strict";
// What all pages share: masks as outlines, the switch between outline, fill and none (key m), and zoom (keys + - 0).
const viewer = (() => {
  const LEVELS = [1, 1.5, 2, 3, 4, 6, 8];
  const DOUBLE_CLICK = 3; // index of the level

  // ---- Outlines: `outline_path` of refseg/evaluation/outlines.py explains how corners are joined.

  function outlinePath(mask, width, height) {
    const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? mask[y * width + x] : 0);
    const columns = [], rows = [];
    for (let y = 0; y <= height; y++) {
      for (let x = 0; x <= width; x++) {
        if (at(x - 1, y - 1) ^ at(x, y - 1) ^ at(x - 1, y) ^ at(x, y)) { columns.push(x); rows.push(y); }
      }
    }
    const byColumn = [...columns.keys()].sort((a, b) => columns[a] - columns[b] || rows[a] - rows[b]);
    const across = new Int32Array(columns.length), closed = new Uint8Array(columns.length);
    byColumn.forEach((corner, place) => { across[corner] = byColumn[place ^ 1]; });
    let path = "";
    for (let first = 0; first < columns.length; first++) {
      if (closed[first]) continue;
      path += `M${columns[first]} ${rows[first]}`;
      for (let corner = first; !closed[corner];) {
        const beside = corner ^ 1;
        closed[corner] = closed[beside] = 1;
        path += `h${columns[beside] - columns[corner]}`;
        corner = across[beside];
        path += `v${rows[corner] - rows[beside]}`;
      }
      path += "z";
    }
    return path;
  }

  // Run lengths go down the columns, zeros first. A mask with a longer side than `most` is sampled at pixel centres.
  function maskOfRuns(counts, height, width, most) {
    const scale = Math.min(1, most / Math.max(height, width));
    const [W, H] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    const mask = new Uint8Array(W * H);
    let run = 0, start = 0;
    for (let X = 0; X < W; X++) {
      const top = Math.floor(((X + 0.5) * width) / W) * height;
      while (run < counts.length && start + counts[run] <= top) start += counts[run++];
      for (let r = run, s = start; r < counts.length && s < top + height; s += counts[r++]) {
        if (r % 2 === 0) continue;
        const from = Math.max(0, s - top), to = Math.min(height, s + counts[r] - top);
        const end = Math.min(H, Math.ceil((to * H) / height - 0.5));
        for (let Y = Math.max(0, Math.ceil((from * H) / height - 0.5)); Y < end; Y++) mask[Y * W + X] = 1;
      }
    }
    return { mask, width: W, height: H };
  }

  // Shows masks, [{kind, mask, width, height}, ...], over a picture of that size; kinds are the classes in look.css.
  function drawMasks(svg, { width, height }, masks) {
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...masks.map((one) => {
      const path = document.createElementNS(svg.namespaceURI, "path");
      path.setAttribute("class", one.kind);
      path.setAttribute("d", outlinePath(one.mask, one.width, one.height));
      if (one.width !== width || one.height !== height) path.setAttribute("transform", `scale(${width / one.width} ${height / one.height})`);
      return path;
    }));
  }

  // ---- The switch: radio buttons, which style sheets read. Windows have a button that takes the next of them.

  function nextMasks() {
    const radios = [...document.querySelectorAll("input[name=masks]")];
    if (!radios.length) return;
    radios[(radios.findIndex((radio) => radio.checked) + 1) % radios.length].checked = true;
    nameMasks();
  }
  function nameMasks() {
    const chosen = document.querySelector("input[name=masks]:checked");
    for (const button of document.querySelectorAll(".next-masks")) button.textContent = `Masks: ${chosen?.value}`;
  }

  const isTyping = (event) => event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox], [type=radio]), select, textarea");
  document.addEventListener("keydown", (event) => { if (event.key === "m" && !isTyping(event)) nextMasks(); });
  document.addEventListener("click", (event) => { if (event.target.closest(".next-masks")) nextMasks(); });
  document.addEventListener("change", (event) => { if (event.target.name === "masks") nameMasks(); });
  document.addEventListener("DOMContentLoaded", nameMasks);

  // ---- Zoom of all frames in a container, which scroll together. `bar` holds the buttons of `zoom_buttons`.

  function zoom(container, bar) {
    let level = 0;
    const frames = () => [...container.querySelectorAll(".frame")];
    const [out, shown, into] = ["[data-zoom='-1']", "output", "[data-zoom='1']"].map((selector) => bar.querySelector(selector));
    function set(wanted, place) {
      const next = Math.max(0, Math.min(LEVELS.length - 1, wanted)), ratio = LEVELS[next] / LEVELS[level];
      level = next;
      shown.textContent = `${100 * LEVELS[level]} %`;
      out.disabled = level === 0;
      into.disabled = level === LEVELS.length - 1;
      for (const frame of frames()) {
        const [x, y] = place ?? [frame.clientWidth / 2, frame.clientHeight / 2];
        const [left, top] = [(frame.scrollLeft + x) * ratio - x, (frame.scrollTop + y) * ratio - y];
        const stage = frame.querySelector(".stage");
        stage.style.width = stage.style.height = `${100 * LEVELS[level]}%`;
        frame.classList.add("zoomable");
        frame.classList.toggle("zoomed", level > 0);
        frame.tabIndex = 0;
        frame.setAttribute("role", "group");
        frame.setAttribute("aria-label", frame.dataset.name ?? "Picture; the keys + and - zoom");
        frame.scrollTo(left, top);
      }
    }
    const placeIn = (frame, event) => [event.clientX - frame.getBoundingClientRect().left, event.clientY - frame.getBoundingClientRect().top];
    bar.addEventListener("click", (event) => {
      const button = event.target.closest("[data-zoom]");
      if (button) set(level + Number(button.dataset.zoom));
    });
    container.addEventListener("dblclick", (event) => {
      const frame = event.target.closest(".frame");
      if (frame) set(level ? 0 : DOUBLE_CLICK, placeIn(frame, event));
    });
    container.addEventListener("wheel", (event) => {
      const frame = event.target.closest(".frame");
      if (!frame || !event.ctrlKey) return;
      event.preventDefault(); // the browser would enlarge the whole page
      set(level - Math.sign(event.deltaY), placeIn(frame, event));
    }, { passive: false });
    container.addEventListener("scroll", ({ target }) => {
      if (!target.matches?.(".frame")) return;
      for (const frame of frames()) if (frame !== target) frame.scrollTo(target.scrollLeft, target.scrollTop);
    }, true);
    container.addEventListener("pointerdown", (event) => {
      const frame = event.target.closest(".frame");
      if (!frame || !level || event.pointerType !== "mouse" || event.button) return;
      event.preventDefault(); // the browser would drag the image away
      frame.focus({ preventScroll: true });
      const drag = (move) => frame.scrollBy(-move.movementX, -move.movementY);
      const stop = () => { removeEventListener("pointermove", drag); removeEventListener("pointerup", stop); };
      addEventListener("pointermove", drag);
      addEventListener("pointerup", stop);
    });
    document.addEventListener("keydown", (event) => {
      const step = { "+": 1, "=": 1, "-": -1 }[event.key];
      const dialog = document.querySelector("dialog[open]");
      if (isTyping(event) || (!step && event.key !== "0") || (dialog && !dialog.contains(container)) || !frames()[0]?.checkVisibility()) return;
      set(step ? level + step : 0);
    });
    return { reset: () => set(0), isZoomed: () => level > 0 };
  }

  return { outlinePath, maskOfRuns, drawMasks, zoom, isTyping };
})();
