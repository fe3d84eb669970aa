// Starts everything.

function drawThemeButton() {
  const button = byId("theme");
  const themes = [["", "Auto", "as the system has them"], ["light", "Light", "light"], ["dark", "Dark", "dark"]];
  let at = 0;
  button.addEventListener("click", () => {
    at = (at + 1) % themes.length;
    const [theme, text, said] = themes[at];
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    button.textContent = text;
    button.setAttribute("aria-label", `Colours: ${said}`);
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
