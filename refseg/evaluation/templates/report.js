// The examples of a report: sorted, searched, filtered, and opened large. Without scripts they stay in their groups.
(() => {
  const ORDERS = {
    worst: (a, b) => a.dataset.iou - b.dataset.iou,
    best: (a, b) => b.dataset.iou - a.dataset.iou,
    small: (a, b) => a.dataset.target - b.dataset.target,
    large: (a, b) => b.dataset.target - a.dataset.target,
    more: (a, b) => b.dataset.predicted / (+b.dataset.target || 1e-9) - a.dataset.predicted / (+a.dataset.target || 1e-9),
    short: (a, b) => a.dataset.words - b.dataset.words,
    long: (a, b) => b.dataset.words - a.dataset.words,
    gain: (a, b) => b.dataset.difference - a.dataset.difference,
    loss: (a, b) => a.dataset.difference - b.dataset.difference,
  };
  for (const tools of document.querySelectorAll(".tools")) {
    const { text, order, group } = tools.elements;
    const groups = [...tools.parentElement.querySelectorAll(".examples")].map((list) => ({ list, figures: [...list.children] }));
    const caption = (figure) => figure.querySelector("figcaption").textContent; // contains the sentence's id
    const arrange = () => {
      const wanted = text.value.trim().toLowerCase(), compare = ORDERS[order.value];
      const kept = groups.filter(({ list }) => !group?.value || list.dataset.group === group.value);
      // When an order is chosen, all groups are one list, in which a sentence of two groups appears once.
      const all = new Map(kept.flatMap(({ figures }) => figures).map((figure) => [caption(figure), figure]));
      for (const { list, figures } of groups) {
        const isKept = kept.some((one) => one.list === list);
        list.replaceChildren(...(!isKept ? [] : !compare ? figures : list === kept[0].list ? [...all.values()].sort(compare) : []));
        for (const figure of list.children) figure.hidden = !figure.querySelector("q").textContent.toLowerCase().includes(wanted);
        list.previousElementSibling.hidden = Boolean(compare) || !list.querySelector("figure:not([hidden])");
      }
      const num = tools.parentElement.querySelectorAll(".examples figure:not([hidden])").length;
      tools.querySelector("output").textContent = wanted || compare || group?.value ? `${num} shown` : "";
    };
    tools.hidden = false;
    tools.addEventListener("input", arrange);
    tools.addEventListener("submit", (event) => event.preventDefault());
  }
  const dialog = document.querySelector("dialog"), content = dialog.querySelector(".opened");
  const zoom = viewer.zoom(content, dialog.querySelector(".toolbar"));
  let opened = null;
  const open = (figure) => {
    opened = figure;
    const large = figure.cloneNode(true);
    for (const button of large.querySelectorAll(".open")) button.replaceWith(...button.childNodes);
    large.querySelector("details")?.setAttribute("open", "");
    content.replaceChildren(large);
    zoom.reset();
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const figures = [...opened.closest("section").querySelectorAll("figure.example:not([hidden])")];
    const next = figures[figures.indexOf(opened) + by];
    if (next) open(next);
  };
  for (const button of document.querySelectorAll(".example .open")) button.addEventListener("click", () => open(button.closest("figure")));
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("[data-step]");
    if (button) step(Number(button.dataset.step));
    else if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (zoom.isZoomed() && event.target.matches(".frame")) return; // the arrows move the picture
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });
})();
