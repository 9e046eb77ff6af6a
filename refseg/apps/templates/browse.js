// The page of refseg browse. The content of annotations is inserted as text (textContent, setAttribute), never as markup.
(() => {
  const CARDS = 48, REJECTS = 100, SIDE = 512, MOST_SENTENCES = 4, BRIEF = 100;
  const NO_TARGET = 1, BOX_ONLY = 2, NOTHING = 4;
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const find = (selector, within = document) => within.querySelector(selector);
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
  const brief = (text) => (text.length > BRIEF ? `${text.slice(0, BRIEF)} …` : text);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const filters = find("#filters"), dialog = find("#sample"), status = find("#status");
  const zoom = viewer.zoom(find(".body", dialog), find(".toolbar", dialog));

  // ---- Parts: blocks of JSON in this file, or scripts beside it (a page from the file system may not fetch).
  const parts = new Map(), arrived = new Map();
  window.refsegPart = (name, content) => arrived.set(name, content);
  function part(name) {
    if (!parts.has(name)) parts.set(name, read(name).catch((error) => { parts.delete(name); fault(error.message); throw error; }));
    return parts.get(name);
  }
  function read(name) {
    const block = document.getElementById(`part-${name}`);
    if (block) return Promise.resolve().then(() => JSON.parse(block.textContent));
    return new Promise((resolve, reject) => {
      const script = make("script");
      script.src = `parts/${name}.js`;
      script.onload = script.onerror = () => {
        script.remove();
        const content = arrived.get(name);
        arrived.delete(name);
        if (content) resolve(content);
        else reject(new Error(`parts/${name}.js cannot be read: the folder is incomplete. Copy it again, or write the page again with refseg browse.`));
      };
      document.head.append(script);
    });
  }
  function fault(message) {
    find("#fault").textContent = message;
    find("#fault").hidden = false;
  }
  const imageOf = async (number) => (await part(`images-${Math.floor(number / facts.imagesPerPart)}`))[number % facts.imagesPerPart];
  const pictureOf = (number, image) => image?.picture ?? `pictures/${Math.floor(number / facts.picturesPerFolder)}/${number}.jpg`;

  // ---- Refs, as filters see them.
  const refs = [];
  let found = [], terms = [], page = 0, opened = -1, reading = true;
  function addRefs(content) {
    for (const [image, split, dataset, category, size, flags, sentences, nothing, ious] of content) {
      const words = sentences.map((text) => (text.match(/\S+/g) ?? []).length);
      refs.push({ row: refs.length, image, split, dataset, category, size, flags, sentences, nothing, ious, words, lower: sentences.map((text) => text.toLowerCase()), matches: [] });
    }
  }
  const KINDS = {
    "": () => true,
    target: (ref) => !(ref.flags & NO_TARGET),
    none: (ref) => ref.flags & NO_TARGET,
    nothing: (ref) => ref.flags & NOTHING,
    box: (ref) => ref.flags & BOX_ONLY,
  };
  const longest = (ref) => Math.max(...ref.matches.map((i) => ref.words[i]));
  const iousOf = (ref) => ref.matches.map((i) => ref.ious?.[i] ?? NaN).filter((iou) => !Number.isNaN(iou));
  const lowest = (ref) => Math.min(...iousOf(ref), 2); // refs without a prediction come last in both orders
  const highest = (ref) => Math.max(...iousOf(ref), -1);
  const shortest = (ref) => Math.min(...ref.matches.map((i) => ref.words[i]));
  const ORDERS = {
    small: (a, b) => a.size - b.size,
    large: (a, b) => b.size - a.size,
    short: (a, b) => shortest(a) - shortest(b),
    long: (a, b) => longest(b) - longest(a),
    worst: (a, b) => lowest(a) - lowest(b),
    best: (a, b) => highest(b) - highest(a),
  };
  function asked() {
    const fields = new Map([...new FormData(filters)].map(([name, value]) => [name, value.trim()]));
    const number = (name, missing) => (fields.get(name) ? Number(fields.get(name)) : missing);
    const place = (name) => (fields.get(name) ? Number(fields.get(name)) : -1);
    return {
      fields,
      terms: [...(fields.get("text") ?? "").toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map((hit) => hit[1] ?? hit[0]),
      split: place("split"), dataset: place("dataset"), category: place("category"), kind: KINDS[fields.get("kind")] ?? KINDS[""],
      minWords: number("minWords", 0), maxWords: number("maxWords", Infinity),
      minSize: number("minSize", 0) / 100, maxSize: number("maxSize", Infinity) / 100,
      minIou: number("minIou", -Infinity) / 100, maxIou: number("maxIou", Infinity) / 100, order: ORDERS[fields.get("order")],
    };
  }
  function select() {
    const wish = asked();
    terms = wish.terms;
    found = refs.filter((ref) => {
      if ((wish.split >= 0 && ref.split !== wish.split) || (wish.dataset >= 0 && ref.dataset !== wish.dataset)) return false;
      if ((wish.category >= 0 && ref.category !== wish.category) || !wish.kind(ref)) return false;
      if (ref.size < wish.minSize || ref.size > wish.maxSize) return false;
      ref.matches = [];
      for (let i = 0; i < ref.lower.length; i++) {
        const iou = ref.ious?.[i] ?? NaN;
        if ((Number.isFinite(wish.minIou) && !(iou >= wish.minIou)) || (Number.isFinite(wish.maxIou) && !(iou <= wish.maxIou))) continue;
        if (ref.words[i] >= wish.minWords && ref.words[i] <= wish.maxWords && terms.every((term) => ref.lower[i].includes(term))) ref.matches.push(i);
      }
      return ref.matches.length > 0;
    });
    if (wish.order) found.sort((a, b) => wish.order(a, b) || a.row - b.row);
    // The sentence that brought a ref to its position comes first, and its prediction is drawn.
    if (wish.order === ORDERS.worst) for (const ref of found) ref.matches.sort((a, b) => (ref.ious?.[a] ?? 2) - (ref.ious?.[b] ?? 2));
    if (wish.order === ORDERS.best) for (const ref of found) ref.matches.sort((a, b) => (ref.ious?.[b] ?? -1) - (ref.ious?.[a] ?? -1));
    return wish;
  }

  // ---- Masks: the target of a ref and, where there are predictions, that of one of its sentences.
  function drawRef(svg, image, chosen, sentence, withOthers) {
    const sized = (kind, counts, height, width) => ({ kind, ...viewer.maskOfRuns(counts, height, width, SIDE) });
    const targetOf = (ref, kind) => sized(kind, ref.counts, image.height, image.width);
    const ref = image.refs[chosen], target = targetOf(ref, "target"), predicted = ref.predictions?.[sentence];
    const others = withOthers ? image.refs.filter((_, i) => i !== chosen).map((other) => targetOf(other, "other")) : [];
    const [height, width] = facts.predictionSize ?? [image.height, image.width];
    const prediction = predicted ? [sized("prediction", predicted[1], height, width)] : [];
    viewer.drawMasks(svg, target, [...others, target, ...prediction]);
  }

  // ---- Sentences.
  function marked(element, text, lower) {
    if (lower.length !== text.length || !terms.length) return element.append(text), element;
    const hit = new Uint8Array(text.length);
    for (const term of terms) for (let at = lower.indexOf(term); at >= 0; at = lower.indexOf(term, at + 1)) hit.fill(1, at, at + term.length);
    for (let from = 0, to; from < text.length; from = to) {
      for (to = from; to < text.length && hit[to] === hit[from]; to++);
      element.append(hit[from] ? make("mark", text.slice(from, to)) : text.slice(from, to));
    }
    return element;
  }
  function sentenceItems(ref, most, raw, choose) {
    const order = [...ref.matches, ...ref.sentences.keys()].filter((i, place, all) => all.indexOf(i) === place);
    const items = order.slice(0, most).map((i) => {
      const item = marked(make("li", undefined, ref.matches.includes(i) ? "" : "aside"), ref.sentences[i], ref.lower[i]);
      if (ref.nothing.includes(i)) item.append(" ", make("span", "names nothing here", "nothing"));
      if (ref.ious?.[i] != null) item.append(" ", make("span", `IoU ${percent(ref.ious[i])}`, "iou"));
      if (raw?.[i] != null) item.append(make("span", `as typed: ${raw[i]}`, "raw"));
      if (choose && ref.ious?.[i] != null) {
        const button = make("button");
        button.type = "button";
        button.append(...item.childNodes);
        button.setAttribute("aria-pressed", String(i === choose.chosen));
        button.addEventListener("click", () => choose.act(i, button));
        item.append(button);
      }
      return item;
    });
    if (order.length > most) items.push(make("li", `and ${order.length - most} more`, "aside"));
    return items;
  }
  const categoryOf = (ref) => facts.categories[ref.category] || "no category";
  const sizeOf = (ref) => (ref.flags & NO_TARGET ? "no target" : `${Number((100 * ref.size).toPrecision(3))} % of the picture`);

  // ---- Cards.
  let shown = [];
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { watcher.unobserve(entry.target); fill(entry.target); }
  }), { rootMargin: "400px" });
  async function fill(card) {
    const ref = card.refsegRef, image = await imageOf(ref.image).catch(() => null);
    if (!image) return;
    if (image.picture) find("img", card).src = image.picture;
    drawRef(find(".masks", card), image, ref.row - image.first, ref.matches[0], false);
    find(".ids", card).append(` · image ${image.id} · ref ${image.refs[ref.row - image.first].id}`);
  }
  function makeCard(ref) {
    const card = find("#card").content.firstElementChild.cloneNode(true);
    card.refsegRef = ref;
    const sentence = ref.sentences[ref.matches[0]];
    find(".open", card).setAttribute("aria-label", `Open: ${brief(sentence)}`);
    find(".open", card).addEventListener("click", () => open(ref.row));
    if (facts.picturesPerFolder) find("img", card).src = pictureOf(ref.image);
    find(".sentences", card).append(...sentenceItems(ref, MOST_SENTENCES));
    find(".ids", card).textContent = [facts.splits[ref.split][0], categoryOf(ref), sizeOf(ref)].join(" · ");
    return card;
  }
  function turn(nav, at, pages) {
    nav.hidden = pages <= 1;
    find("span", nav).textContent = `${at + 1} of ${pages.toLocaleString("en")}`;
    find(".previous", nav).disabled = at === 0;
    find(".next", nav).disabled = at >= pages - 1;
  }
  function show({ keepPage = false } = {}) {
    const wish = select(), pages = Math.max(1, Math.ceil(found.length / CARDS));
    page = keepPage ? Math.min(page, pages - 1) : 0;
    const now = found.slice(page * CARDS, (page + 1) * CARDS);
    const key = (ref) => `${ref.row} ${ref.matches} ${terms}`;
    if (!now.length || now.length !== shown.length || now.some((ref, i) => key(ref) !== shown[i])) {
      watcher.disconnect();
      const cards = now.map(makeCard);
      find("#cards").replaceChildren(...(cards.length || reading ? cards : [make("li", "No sample fits these filters.", "empty")]));
      cards.forEach((card) => watcher.observe(card));
      shown = now.map(key);
    }
    const sentences = found.reduce((sum, ref) => sum + ref.matches.length, 0);
    status.textContent = `${found.length.toLocaleString("en")} of ${count(facts.numRefs, "ref")}, ${count(sentences, "sentence")}`
      + (reading ? `, reading … ${Math.round((100 * refs.length) / facts.numRefs)} %` : "");
    turn(find("#samples .pages"), page, pages);
    remember(wish.fields);
  }

  // ---- The address holds filters, page and what is open.
  function remember(fields) {
    if (reading) return;
    const words = new URLSearchParams([...fields].filter(([, value]) => value));
    if (page) words.set("page", page + 1);
    if (opened >= 0) words.set("open", opened);
    if (!find("#rejects").hidden) words.set("view", "rejects");
    history.replaceState(null, "", words.size ? `#${words}` : "#");
  }
  function recall() {
    const words = new URLSearchParams(location.hash.slice(1));
    for (const field of filters.elements) if (field.name) field.value = words.get(field.name) ?? "";
    page = Math.max(0, Number(words.get("page") ?? 1) - 1 || 0);
    if (words.get("view") === "rejects") view("rejects");
    find("#more").open = matchMedia("(min-width: 721px)").matches;
    return Number(words.get("open") ?? -1);
  }

  // ---- One sample.
  async function open(row) {
    const ref = refs[row];
    if (!ref) return;
    const image = await imageOf(ref.image).catch(() => null);
    if (!image) return;
    if (!ref.matches.length) ref.matches = [...ref.sentences.keys()];
    opened = row;
    const chosen = row - image.first, details = image.refs[chosen], place = found.indexOf(ref);
    find("#sample-title").textContent = ref.sentences[ref.matches[0]];
    const picture = find("img", dialog);
    picture.src = pictureOf(ref.image, image);
    picture.alt = `Image ${image.id}${ref.flags & NO_TARGET ? "" : ` with the target outlined; it covers ${sizeOf(ref)}`}${details.predictions ? ", and the prediction" : ""}`;
    find(".frame", dialog).style.aspectRatio = `${image.width} / ${image.height}`;
    const choose = {
      chosen: ref.matches[0],
      act(sentence, button) {
        for (const other of dialog.querySelectorAll(".sentences button")) other.setAttribute("aria-pressed", String(other === button));
        drawRef(find(".masks", dialog), image, chosen, sentence, true);
      },
    };
    drawRef(find(".masks", dialog), image, chosen, choose.chosen, true);
    find(".sentences", dialog).replaceChildren(...sentenceItems(ref, Infinity, details.raw, choose));
    zoom.reset();
    const told = {
      split: facts.splits[ref.split][0], dataset: facts.datasets[ref.dataset], category: categoryOf(ref),
      target: `${sizeOf(ref)}, ${count(details.area, "pixel")}${ref.flags & BOX_ONLY ? ", a filled box" : ""}`,
      "box x, y, w, h": details.box.join(", "), ref: details.id, annotations: details.annotations.join(", ") || "none",
      image: image.id, file: image.file, size: `${image.width} × ${image.height}`,
    };
    find("dl", dialog).replaceChildren(...Object.entries(told).flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
    find(".others", dialog).replaceChildren(...image.refs.map((other, i) => {
      const item = make("li"), button = make("button");
      button.type = "button";
      button.append(make("span", refs[image.first + i].sentences[0], "clamped"), make("small", `ref ${other.id} · ${categoryOf(refs[image.first + i])}`));
      if (i === chosen) button.setAttribute("aria-current", "true");
      button.addEventListener("click", async () => {
        await open(image.first + i);
        find(".others [aria-current]", dialog).focus();
      });
      item.append(button);
      return item;
    }));
    find(".others-title", dialog).hidden = find(".others", dialog).hidden = image.refs.length < 2;
    find(".previous", dialog).disabled = place <= 0;
    find(".next", dialog).disabled = place < 0 || place >= found.length - 1;
    if (!dialog.open) dialog.showModal();
    remember(asked().fields);
  }
  function step(by) {
    const place = found.indexOf(refs[opened]);
    if (place >= 0 && found[place + by]) open(found[place + by].row);
  }

  // ---- Rejects.
  let rejectPage = 0;
  async function showRejects(keepPage) {
    const all = await part("rejects").catch(() => []), wish = new FormData(find("#reject-filters"));
    const text = wish.get("text").trim().toLowerCase(), reason = wish.get("reason");
    const some = all.filter((reject) => (!reason || reject[3] === reason) && (!text || reject.join(" ").toLowerCase().includes(text)));
    const pages = Math.max(1, Math.ceil(some.length / REJECTS));
    rejectPage = keepPage ? Math.min(rejectPage, pages - 1) : 0;
    find("#rejects tbody").replaceChildren(...some.slice(rejectPage * REJECTS, (rejectPage + 1) * REJECTS).map((reject) => {
      const row = make("tr");
      row.append(...reject.map((value) => make("td", value ?? "–")));
      return row;
    }));
    find("#reject-status").textContent = all.length ? `${some.length.toLocaleString("en")} of ${count(all.length, "reject")}` : "No ref was rejected.";
    find("#rejects table").hidden = find("#reject-filters").hidden = !all.length;
    turn(find("#rejects .pages"), rejectPage, pages);
  }
  function view(name) {
    for (const other of ["samples", "rejects"]) {
      find(`#${other}`).hidden = other !== name;
      find(`#show-${other}`).setAttribute("aria-pressed", String(other === name));
    }
    if (name === "rejects") showRejects();
  }

  // ---- What a person does.
  const debounced = (act, waiting = 0) => () => { clearTimeout(waiting); waiting = setTimeout(act, 120); };
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", debounced(show));
  filters.addEventListener("reset", () => setTimeout(show));
  find("#reject-filters").addEventListener("submit", (event) => event.preventDefault());
  find("#reject-filters").addEventListener("input", debounced(showRejects));
  for (const [nav, go] of [["#samples .pages", (by) => { page += by; show({ keepPage: true }); }], ["#rejects .pages", (by) => { rejectPage += by; showRejects(true); }]]) {
    const walk = (by) => { go(by); find(nav).parentElement.scrollIntoView(); };
    find(`${nav} .previous`).addEventListener("click", () => walk(-1));
    find(`${nav} .next`).addEventListener("click", () => walk(1));
  }
  for (const name of ["samples", "rejects"]) find(`#show-${name}`).addEventListener("click", () => { view(name); remember(asked().fields); });
  find(".previous", dialog).addEventListener("click", () => step(-1));
  find(".next", dialog).addEventListener("click", () => step(1));
  find(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { opened = -1; remember(asked().fields); });
  document.addEventListener("keydown", (event) => {
    if (viewer.isTyping(event) || (zoom.isZoomed() && event.target.matches(".frame"))) return; // the arrows move the picture
    if (event.key === "/" && !dialog.open) { event.preventDefault(); find("section:not([hidden]) input[name=text]").focus(); }
    else if (event.key === "ArrowLeft" && dialog.open) step(-1);
    else if (event.key === "ArrowRight" && dialog.open) step(1);
  });

  async function start() {
    const categories = facts.categories.map((name, place) => [name || "no category", place]).sort((a, b) => a[0].localeCompare(b[0]));
    for (const [name, place] of categories) {
      const option = make("option", name);
      option.value = place;
      filters.elements.category.append(option);
    }
    const wanted = recall();
    for (let number = 0; number < facts.numRefParts; number++) {
      addRefs(await part(`refs-${number}`));
      parts.delete(`refs-${number}`);
      reading = number < facts.numRefParts - 1;
      show({ keepPage: true });
    }
    if (wanted >= 0) open(wanted);
  }
  start();
})();
