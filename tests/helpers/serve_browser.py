"""What the tests of the page look at."""

from typing import Any

# Ratio of luminances (WCAG 2.2, 1.4.3) of each text and the ground it stands on, with the text; lowest first.
CONTRASTS = """() => {
  const channels = (css) => css.match(/[\\d.]+/g).map(Number);
  const luminance = (css) => channels(css).slice(0, 3)
    .map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const css = getComputedStyle(element).backgroundColor;
    return channels(css)[3] === 0 ? ground(element.parentElement) : css;
  };
  const written = (node) => node.nodeType === 3 && node.data.trim();
  const own = (element) => [...element.childNodes].some(written) || (element.type !== "range" && element.value);
  return [...document.querySelectorAll("body *")].filter((e) => own(e) && e.checkVisibility()).map((e) => {
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent || e.value];
  }).sort((x, y) => x[0] - y[0]);
}"""


class Watched:
    """A page of which it is kept what went wrong, and whom it asked.

    Attributes:
        page: Playwright's.
        problems: errors and warnings on the console, uncaught exceptions, dialogs.
        asked: addresses of all requests.
    """

    def __init__(self, browser: Any, **options: Any):
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(20_000)
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
