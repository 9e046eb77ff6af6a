"use strict";
// Makes the report's examples sortable, searchable and large; without scripts they stay as they are drawn.
(() => {
  const ORDERS = {
    worst: (a, b) => a.dataset.iou - b.dataset.iou,
    best: (a, b) => b.dataset.iou - a.dataset.iou,
    small: (a, b) => a.dataset.target - b.dataset.target,
    large: (a, b) => b.dataset.target - a.dataset.target,
    more: (a, b) => b.dataset.predicted / (+b.dataset.target || 1e-9) - a.dataset.predicted / (+a.dataset.target || 1e-9),
    short: (a, b) => a.dataset.words - b.dataset.words,
    long: (a, b) => b.dataset.words - a.dataset.words,
  };
  for (const tools of document.querySelectorAll(".tools")) {
    const { text, order } = tools.elements, groups = tools.parentElement.querySelectorAll(".examples");
    const drawn = new Map([...groups].map((group) => [group, [...group.children]]));
    const arrange = () => {
      const wanted = text.value.trim().toLowerCase();
      let shown = 0;
      for (const [group, figures] of drawn) {
        group.append(...(ORDERS[order.value] ? [...figures].sort(ORDERS[order.value]) : figures));
        for (const figure of figures) {
          figure.hidden = !figure.querySelector("q").textContent.toLowerCase().includes(wanted);
          shown += !figure.hidden;
        }
      }
      tools.querySelector("output").textContent = wanted || order.value ? `${shown} shown` : "";
    };
    tools.hidden = false;
    tools.addEventListener("input", arrange);
    tools.addEventListener("submit", (event) => event.preventDefault());
  }
  const dialog = document.querySelector("dialog"), place = dialog?.querySelector("div");
  let opened = null;
  const open = (figure) => {
    opened = figure;
    const large = figure.cloneNode(true);
    large.querySelector(".open").replaceWith(large.querySelector(".open .frame"));
    large.querySelector("details")?.setAttribute("open", "");
    place.replaceChildren(large);
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const figures = [...opened.parentElement.children].filter((figure) => !figure.hidden);
    const next = figures[figures.indexOf(opened) + by];
    if (next) open(next);
  };
  for (const button of document.querySelectorAll(".example .open")) button.addEventListener("click", () => open(button.closest("figure")));
  dialog?.addEventListener("click", (event) => {
    const button = event.target.closest("[data-step]");
    if (button) step(Number(button.dataset.step));
    else if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });
  dialog?.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });
})();
