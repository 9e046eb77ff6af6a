"use strict";
// Makes the report's examples sortable, searchable and large; without scripts they stay in their groups.
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
    const { text, order } = tools.elements;
    const groups = [...tools.parentElement.querySelectorAll(".examples")].map((list) => ({ list, figures: [...list.children] }));
    const caption = (figure) => figure.querySelector("figcaption").textContent; // holds the sentence's id
    const all = new Map(groups.flatMap(({ figures }) => figures).map((figure) => [caption(figure), figure]));
    const arrange = () => {
      const wanted = text.value.trim().toLowerCase(), compare = ORDERS[order.value];
      // In order, the groups are one list, and a sentence of two groups stands there once.
      groups.forEach(({ list, figures }, place) => {
        list.replaceChildren(...(!compare ? figures : place === 0 ? [...all.values()].sort(compare) : []));
        for (const figure of list.children) figure.hidden = !figure.querySelector("q").textContent.toLowerCase().includes(wanted);
        list.previousElementSibling.hidden = Boolean(compare) || !list.querySelector("figure:not([hidden])");
      });
      const num = tools.parentElement.querySelectorAll(".examples figure:not([hidden])").length;
      tools.querySelector("output").textContent = wanted || compare ? `${num} shown` : "";
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
    const figures = [...opened.closest("section").querySelectorAll("figure.example:not([hidden])")];
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
