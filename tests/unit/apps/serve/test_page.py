"""The page, in a real browser."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.cli.main import main
from beit3_vqa.engine.predictor import load
from tests.helpers.browser import chromium, needs_chromium, wait_for
from tests.helpers.commands import finetune
from tests.helpers.serve_browser import CONTRASTS, Watched
from tests.helpers.serve_client import CHOICES, ask, running

pytestmark = needs_chromium
MARKUP = "<img src=x onerror=alert(1)>"
DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/jpeg" }));
  for (const kind of ["dragover", "drop"]) {
    const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
  }
}"""
PASTE = """(content) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def both_url(ensemble, clip):
    with running(Ensemble([*ensemble.predictors, clip])) as address:
        yield address


@pytest.fixture(scope="module")
def clip_url(clip):
    with running(Ensemble([clip])) as address:
        yield address


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def fill(page, question="What is it?", choices=CHOICES) -> None:
    page.fill("#question", question)
    for place, choice in enumerate(choices):
        page.fill(f"#option-{place}", choice)


def test_a_dropped_image_is_answered_with_bars_and_overlay(browser, url, ensemble, photograph):
    seen = Watched(browser)
    page = seen.page
    page.goto(url)
    page.wait_for_selector("#option-3")
    assert page.locator("#options li").count() == 4
    assert "exactly 4" in page.inner_text("#options-note")
    page.evaluate(DROP, [base64_of(photograph), MARKUP])
    choices = (MARKUP, *CHOICES[:3])
    fill(page, f"{MARKUP}?", choices)
    page.click("#ask")
    page.wait_for_selector("#answer li")

    expected = ensemble.predictors[0].predict(photograph, f"{MARKUP}?", choices).probabilities
    assert page.locator("#answer .text").all_inner_texts() == list(choices)
    shares = page.locator("#answer .share").all_inner_texts()
    assert shares == [f"{100 * probability:.1f}%" for probability in expected.values()]
    widths = page.eval_on_selector_all("#answer .bar", "bars => bars.map(b => b.getBoundingClientRect().width)")
    row = page.eval_on_selector("#answer li", "li => li.clientWidth")
    assert widths == pytest.approx([row * probability for probability in expected.values()], abs=1)

    boxes = [page.locator(name).bounding_box() for name in ("#overlay", "#preview")]
    assert list(boxes[0].values()) == pytest.approx(list(boxes[1].values()), abs=1)  # BEiT-3 sees the whole image
    pixels = page.eval_on_selector(
        "#overlay", "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    assert len(set(pixels)) > 10  # of colours
    shades = sorted((tuple(pixels[k : k + 4]) for k in range(0, len(pixels), 4)), key=lambda shade: shade[3])
    assert shades[-1] == pytest.approx((190, 0, 90, 235), abs=3)  # the report's red; the rest lets the picture through
    assert shades[0][3] < 200
    assert page.eval_on_selector("#overlay", "c => getComputedStyle(c).opacity") == "0.65"
    assert page.inner_text("#faded") == "65%"
    for value, opacity in (("0", "0"), ("100", "1")):
        page.fill("#fade", value)
        assert page.eval_on_selector("#overlay", "c => getComputedStyle(c).opacity") == opacity

    assert page.locator("img").count() == 1  # ours
    assert seen.problems == []
    assert len([asked for asked in seen.asked if asked.endswith("/api/answer")]) == 1
    assert all(asked.startswith((url, "blob:")) for asked in seen.asked)
    page.context.close()


def test_page_works_with_the_keyboard_alone(browser, url, photograph):
    """Tab and Enter, an image that is pasted, and errors that are read out and lead to what is wrong."""
    seen = Watched(browser)
    page = seen.page
    page.goto(url)
    page.wait_for_selector("#option-3")
    page.focus("#question")
    page.keyboard.type("What is it?")
    page.keyboard.press("Enter")
    assert page.inner_text("#error") == "Choose an image first."
    assert page.evaluate("document.activeElement.id") == "file"
    outline = page.eval_on_selector("#choose", "label => getComputedStyle(label).outlineStyle")
    assert outline == "solid"  # the focus can be seen
    page.evaluate(PASTE, base64_of(photograph))
    assert page.inner_text("#error") == ""
    page.focus("#question")
    for choice in CHOICES:
        page.keyboard.press("Tab")
        page.keyboard.type(choice)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer li")
    page.keyboard.press("Shift+Tab")
    page.focus("#option-0")
    page.keyboard.press("Control+A")
    page.keyboard.type(CHOICES[1])
    page.keyboard.press("Enter")
    assert page.inner_text("#error") == "Option B is there twice."
    assert page.evaluate("document.activeElement.id") == "option-1"
    page.focus("#fade")
    before = page.input_value("#fade")
    page.keyboard.press("ArrowLeft")
    assert int(page.input_value("#fade")) == int(before) - 1
    assert seen.problems == []
    page.context.close()


def test_a_small_image_is_shown_larger_with_its_sides_in_proportion(browser, url, tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "small.png")
    seen = Watched(browser)
    page = seen.page
    page.goto(url)
    page.wait_for_selector("#option-3")
    page.set_input_files("#file", tmp_path / "small.png")
    wait_for(page, "document.getElementById('preview').clientWidth > 64")
    box = page.locator("#preview").bounding_box()
    assert (box["width"], box["height"]) == pytest.approx((320, 160), abs=1)
    assert seen.problems == []
    page.context.close()


def test_an_unreadable_image_shows_the_servers_error(browser, url, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"no image")
    seen = Watched(browser)
    page = seen.page
    page.goto(url)
    page.wait_for_selector("#option-3")
    page.set_input_files("#file", tmp_path / "cat.jpg")
    page.wait_for_selector("#unseen")
    fill(page)
    page.click("#ask")
    wait_for(page, "document.getElementById('error').textContent")
    assert "no image that can be read" in page.inner_text("#error")
    assert page.inner_text("#ask") == "Ask"
    assert [said for said in seen.problems if "422" not in said] == []  # chromium notes the status
    page.context.close()


def test_options_can_be_added_up_to_the_models_limit(browser, clip_url, photograph):
    seen = Watched(browser)
    page = seen.page
    page.goto(clip_url)
    page.wait_for_selector("#option-3")
    page.set_input_files("#file", photograph)
    for _ in range(6):
        page.click("#add")
    assert page.locator("#options li").count() == 10
    assert not page.is_visible("#add")
    for place in (4, 0):
        page.click(f"[aria-label='Remove option {'ABCDE'[place]}']")
    assert page.locator("#options label").all_inner_texts() == list("ABCDEFGH")
    fill(page, choices=[f"o{place}" for place in range(8)])
    page.click("#ask")
    page.wait_for_selector("#answer li")
    assert page.locator("#answer .letter").all_inner_texts() == list("ABCDEFGH")
    assert seen.problems == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout_and_contrast_hold_at_both_widths_and_schemes(browser, both_url, photograph, scheme):
    """Nothing sticks out sideways, every text has AA contrast, and an ensemble shows where each member looked."""
    for width in (400, 1400):
        seen = Watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = seen.page
        page.goto(both_url)
        page.wait_for_selector("#option-3")
        page.set_input_files("#file", photograph)
        fill(page)
        page.click("#ask")
        page.wait_for_selector("#answer li")
        assert page.locator("#whose option").count() == 2
        beit3 = page.locator("#overlay").bounding_box()
        page.select_option("#whose", "1")
        clip = page.locator("#overlay").bounding_box()
        assert clip["width"] < beit3["width"]  # CLIP sees the middle square
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        contrasts = page.evaluate(CONTRASTS)
        assert contrasts[0][0] >= 4.5, contrasts[:5]
        assert len(contrasts) > 15
        page.goto(f"{both_url}/docs")
        page.wait_for_selector("table")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRASTS)[0][0] >= 4.5
        assert "choices=a cat" in page.inner_text("#example")
        assert seen.problems == []
        assert all(asked.startswith((both_url, "blob:")) for asked in seen.asked)
        page.context.close()


@pytest.mark.slow
def test_an_open_ended_model_is_asked_without_options(browser, scpc, tmp_path):
    """No options; the likeliest answers of its vocabulary."""
    rows = []
    for number, path in enumerate(sorted((scpc / "images").iterdir())):
        answer = path.stem.split("_")[1]
        image = {"image_id": path.stem, "question": "What?", "question_id": f"q{number}"}
        rows.append({**image, "answer": answer})
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    prepare = ["prepare", "dacon_json", "--train", str(tmp_path / "train.json"), "--test", str(tmp_path / "test.json")]
    prepare += ["--image_root", str(scpc / "images"), "--data_path", str(tmp_path / "data"), "--train_tokenizer", "300"]
    assert main(prepare) == 0
    assert main(finetune(tmp_path, tmp_path / "out", "--epochs", "1")) == 0
    model = load(tmp_path / "out" / "checkpoint-best.pth", "cpu", precision="fp32")
    photograph = scpc / "images" / "0_chelsea.jpg"
    with running(Ensemble([model])) as url:
        seen = Watched(browser)
        page = seen.page
        page.goto(url)
        wait_for(page, "document.getElementById('models').textContent.trim()")
        assert not page.is_visible("#options-box")
        page.set_input_files("#file", photograph)
        page.fill("#question", "What?")
        page.click("#ask")
        page.wait_for_selector("#answer li")
        expected = model.predict(photograph, "What?")
        assert page.locator("#answer .text").all_inner_texts() == list(expected.probabilities)
        assert page.locator("#answer .letter").count() == 0
        assert page.locator("#answer li.first .text").inner_text() == expected.answer
        assert seen.problems == []
        status, said = ask(url, photograph, "What?")
        assert status == 422
        assert "leave the choices out" in said["error"]
        _, said = ask(url, photograph, "What?", ())
        assert {option["letter"] for option in said["options"]} == {None}
        page.context.close()


FOREIGN = """async ([url, content, choices, mode]) => {
  const form = new FormData();
  form.append("image", new Blob([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))]), "cat.jpg");
  form.append("question", "What?");
  for (const choice of choices) form.append("choices", choice);
  try { return (await fetch(url + "/api/answer", { method: "POST", body: form, mode })).status; }
  catch (error) { return 0; }
}"""


def test_a_page_of_another_site_cannot_ask(browser, ensemble, photograph):
    """A form that this server's own page may send, sent by another's: the model isn't asked."""
    counting = CountingEnsemble(ensemble.predictors)
    with running(counting) as url, running_page() as elsewhere:
        page = browser.new_context().new_page()
        for address, mode, status in ((elsewhere, "no-cors", 0), (elsewhere, "cors", 0), (url, "cors", 200)):
            page.goto(address)
            assert page.evaluate(FOREIGN, [url, base64_of(photograph), CHOICES, mode]) == status
            assert counting.answered == (status == 200)
        page.context.close()


def test_a_page_asks_with_the_token_of_its_address(browser, ensemble, photograph):
    token = "a-token_of.24~characters"
    with running(ensemble, token=token) as url:
        seen = Watched(browser)
        page = seen.page
        page.goto(url)
        page.wait_for_selector("#error:not(:empty)")
        assert "asks for a token" in page.inner_text("#error")
        page.goto(f"{url}/#token=wrong")  # the same page: only what is behind the # changes
        page.wait_for_url(f"{url}/")  # it takes the token out of its address and begins anew
        page.wait_for_selector("#error:not(:empty)")
        page.goto(f"{url}/#token={token}")
        for _ in range(2):
            page.wait_for_selector("#option-3")
            assert page.url == f"{url}/"
            page.set_input_files("#file", photograph)
            fill(page)
            page.click("#ask")
            page.wait_for_selector("#answer li")
            assert page.inner_text("#error") == ""
            page.reload()
        page.goto(f"{url}/docs")
        page.wait_for_selector("#operations h2")
        assert f"-H 'Authorization: Bearer {token}'" in page.inner_text("#example")
        assert not [address for address in seen.asked if token in address and "#" not in address]
        page.context.close()


def test_a_token_of_a_hostile_address_stays_out_of_the_command_to_copy(browser, url):
    page = Watched(browser).page
    page.goto(f"{url}/docs#token=x' ; reboot '")
    page.wait_for_selector("#operations h2")
    assert "reboot" not in page.inner_text("#example")
    page.context.close()


class CountingEnsemble(Ensemble):
    answered = 0

    def answer(self, questions):
        self.answered += len(questions)
        return super().answer(questions)


class Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<title>elsewhere</title>")

    def log_message(self, *_):
        pass


@contextmanager
def running_page() -> Iterator[str]:
    """A page of another origin on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
