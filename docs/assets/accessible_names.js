// Names and keyboard access that the theme leaves out: axe-core asks for them.
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");

function complete() {
  document.querySelectorAll(".md-code__nav").forEach((bar, index) => bar.setAttribute("aria-label", `Code block ${index + 1}`));
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((wrap) => wrap.setAttribute("tabindex", "0"));
}

complete();
new MutationObserver(complete).observe(document.querySelector("[data-md-component=content]") ?? document.body, {
  childList: true,
  subtree: true,
});
