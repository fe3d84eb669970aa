// Starts everything.

function drawThemeButton() {
  const button = byId("theme");
  const themes = ["system", "light", "dark"];
  let at = 0;
  button.addEventListener("click", () => {
    at = (at + 1) % themes.length;
    if (at) document.documentElement.dataset.theme = themes[at];
    else delete document.documentElement.dataset.theme;
    button.textContent = `Theme: ${themes[at]}`;
  });
}

drawThemeButton();
drawSummary();
if (questions.id.length) {
  makeFilters();
  filter();
  byId("previous").addEventListener("click", () => showPage(state.page - 1));
  byId("next").addEventListener("click", () => showPage(state.page + 1));
  byId("gallery").addEventListener("keydown", walk);
  byId("detail").addEventListener("keydown", walkDetail);
  byId("detail").addEventListener("close", closed);
  document.addEventListener("DOMContentLoaded", arrived);
} else {
  const unused = ["#metrics", "#questions"];
  for (const name of unused) {
    document.querySelector(name).hidden = true;
    document.querySelector(`nav a[href="${name}"]`).hidden = true;
  }
  document.querySelector(".skip").hidden = true;
}
document.documentElement.dataset.ready = "yes";
