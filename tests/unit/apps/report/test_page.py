"""The report in a real Chromium, opened from disk."""

import json
import time
from contextlib import contextmanager
from itertools import pairwise

import pytest
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.metrics.label_errors import find_label_errors
from tests.helpers.browser import needs_chromium, wait_for
from tests.helpers.runs import HOSTILE, some_predictions, write_run

pytestmark = needs_chromium

FIRST = "button.question >> nth=0"

# Every piece of text that can be seen: its colour against what lies behind it, as WCAG 2 counts.
CONTRAST = """() => {
  const parse = (text) => {
    const n = text.match(/[\\d.e-]+/g).map(Number);
    const scale = text.startsWith("color(") ? 1 : 255;
    return [n[0] / scale, n[1] / scale, n[2] / scale, n.length > 3 ? n[3] : 1];
  };
  const over = (top, under) => [0, 1, 2].map((k) => top[k] * top[3] + under[k] * (1 - top[3]));
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), [1, 1, 1]);
  };
  const bad = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    if (element.closest("script, style, noscript, title, [disabled]")) continue;
    const style = getComputedStyle(element);
    const under = behind(element);
    const text = over(parse(element instanceof SVGElement ? style.fill : style.color), under);
    const [one, two] = [light(text), light(under)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (two + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen++;
    if (ratio < (large ? 3 : 4.5)) bad.push([walker.currentNode.data.slice(0, 40), ratio.toFixed(2)]);
  }

  return { seen, bad };
}"""


@contextmanager
def opened(browser, path, width=1400, scheme="light", until="load"):
    """The page in a window of its own; it may neither complain nor ask for anything beyond itself."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    said, asked = [], []
    try:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri(), wait_until=until)
        page.wait_for_selector("html[data-ready=yes]")
        yield page
        assert not said
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    finally:
        context.close()


def count(page) -> int:
    return int(page.text_content("#count").split(" of ")[0].replace(",", ""))


def test_page_shows_runs_plots_and_every_question(browser, page):
    with opened(browser, page) as shown:
        assert shown.title() == "3 runs compared"
        assert shown.locator(".run").count() == 3
        titles = shown.locator("#training h3").all_text_contents()
        assert titles == ["Training loss", "Validation score", "Validation loss", "Learning rate", "Throughput"]
        titles = shown.locator("#metrics h3").all_text_contents()
        assert titles[:3] == ["Accuracy by question word", "Reliability", "Accuracy at coverage"]
        assert titles[3:] == [
            f"{what}: {run}" for what in ("Positions", "Confusion") for run in ("real", "first", "second")
        ]
        assert shown.locator("svg path.curve").count() > 5
        assert "30" in shown.locator(".run >> nth=0").inner_text()
        assert count(shown) == 90
        assert shown.locator(".card").count() == 24
        assert shown.locator(".card img").evaluate_all(
            "all => all.every((one) => one.complete && one.naturalWidth > 0)"
        )


def test_markup_in_the_data_stays_text(browser, page):
    with opened(browser, page) as shown:
        shown.fill("#f-text", "onerror")
        assert count(shown) == 12
        assert "<img src=x onerror=" in shown.locator(FIRST).text_content()
        assert "\\u202e" in shown.locator(FIRST).text_content()  # turned around, it could look like another text
        shown.locator(FIRST).click()
        assert shown.locator("#detail-question").text_content().startswith(HOSTILE[:40])
        assert shown.title() == "3 runs compared"
        assert shown.locator("img[src=x]").count() == 0
        assert shown.locator("body script").count() == 1 + shown.locator("script[type='application/json']").count()


def test_filters_show_the_questions_that_fit(browser, page):
    with opened(browser, page) as shown:
        shown.select_option("#f-run", label="first")
        shown.fill("#f-text", "q")
        everything = count(shown)
        parts = []
        for result in ("right", "wrong"):
            shown.select_option("#f-result", result)
            parts.append(count(shown))
        assert sum(parts) == everything
        assert all(parts)
        assert set(shown.locator(".card .head .badge").all_text_contents()) == {"✗ wrong"}
        shown.click("#f-reset")
        assert count(shown) == 90

        shown.select_option("#f-word", "where")
        assert count(shown) == 12
        assert set(shown.locator("button.question").all_text_contents()) == {"Where was this taken?"}
        shown.select_option("#f-word", "what")
        assert "무엇이 보이나요?" in shown.locator("button.question").all_text_contents()
        shown.click("#f-reset")

        shown.select_option("#f-run", label="second")
        shown.fill("#f-low", "60")
        shown.fill("#f-high", "80")
        sure = shown.locator(".card .option.chosen .percent").all_text_contents()
        assert sure
        assert all(60 <= float(text.rstrip("%")) <= 80 for text in sure[:10])
        shown.click("#f-reset")

        shown.select_option("#f-answer", "C")
        shown.select_option("#f-truth", "A")
        assert count(shown) > 0
        marks = shown.locator(".card >> nth=0 >> .marks").all_text_contents()
        assert marks == ["✓ true", "✗ answered"]
        shown.fill("#f-text", "no such text anywhere")
        assert count(shown) == 0
        assert "No question fits" in shown.locator("#gallery").inner_text()


def test_likely_label_errors_can_be_looked_at(browser, scpc, images, tmp_path):
    predictions = some_predictions(images, 60, 1, hostile=False)
    write_run(tmp_path / "out", predictions, scpc / "images", split="train")
    (tmp_path / "out" / "label_errors.csv").touch()
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "out"), "--attention", "0", "--output", str(output)]) == 0
    ranked = [error.prediction.id for error in find_label_errors(predictions)]
    with opened(browser, output) as shown:
        shown.select_option("#f-result", "error")
        assert count(shown) == len(ranked)
        assert set(shown.locator(".card .id").all_text_contents()) == set(ranked[:24])
        shown.select_option("#f-order", "error")
        assert shown.locator(".card .id").all_text_contents() == ranked[:24]
        assert "likely label error 2" in shown.locator(".card >> nth=1").text_content()
        shown.select_option("#f-result", "all")
        assert count(shown) == 60
        assert shown.locator(".card .id").all_text_contents()[: len(ranked)] == ranked[:24]


def test_filters_find_where_runs_disagree(browser, page):
    with opened(browser, page) as shown:
        assert "first and second" in shown.locator("#between").inner_text()
        shown.select_option("#f-run", label="first")
        counts = {}
        for wanted in ("differ", "same", "some", "only", "none"):
            shown.select_option("#f-others", wanted)
            counts[wanted] = count(shown)
            if wanted == "only":
                votes = shown.locator(".card >> nth=0 >> .votes .badge").all_text_contents()
                assert [("✓" in vote) for vote in votes] == [True, False]
        assert counts["differ"] + counts["same"] == 60  # of two runs; the third answered other questions
        row = shown.locator("#between tr", has_text="first and second").locator("td").all_text_contents()
        assert counts["only"] == int(row[2])


def test_arrow_keys_walk_through_questions_and_enter_opens_one(browser, page):
    with opened(browser, page) as shown:
        focused = "document.activeElement.dataset.place"
        shown.locator(FIRST).focus()
        for key, place in (
            ("ArrowRight", "1"),
            ("ArrowDown", "5"),
            ("ArrowLeft", "4"),
            ("ArrowUp", "0"),
            ("ArrowLeft", "0"),
        ):
            shown.keyboard.press(key)
            assert shown.evaluate(focused) == place, key
        for _ in range(24):
            shown.keyboard.press("ArrowRight")
        assert shown.evaluate(focused) == "24"  # on the next page
        assert shown.text_content("#page") == "page 2 of 4"
        shown.keyboard.press("Enter")
        assert shown.evaluate("document.getElementById('detail').open")
        assert "25 of 90" in shown.text_content(".detail-top")
        for _ in range(30):
            shown.keyboard.press("ArrowRight")
        assert "55 of 90" in shown.text_content(".detail-top")
        shown.keyboard.press("Escape")
        wait_for(shown, f"!document.getElementById('detail').open && {focused} === '54'")
        assert shown.text_content("#page") == "page 3 of 4"


def test_every_control_is_reached_with_tab(browser, page):
    with opened(browser, page) as shown:
        reached = set()
        for _ in range(80):
            shown.keyboard.press("Tab")
            reached.add(
                shown.evaluate(
                    "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
                )
            )
            if shown.evaluate("document.activeElement === document.body"):
                break  # once around
            outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", reached
        names = {
            "theme",
            "skip",
            "f-text",
            "f-run",
            "f-result",
            "f-others",
            "f-word",
            "f-answer",
            "f-truth",
            "f-low",
            "f-high",
        }
        assert names | {"f-order", "f-reset", "next", "question data-text", "smoothing", "plot"} <= reached


def test_attention_overlay_covers_the_picture_and_fades(browser, page, evaluated):
    with opened(browser, page) as shown:
        shown.select_option("#f-result", "map")
        assert count(shown) == 30
        shown.locator(FIRST).click()
        overlay = shown.locator("#overlay")
        assert overlay.evaluate("(c) => c.style.opacity") == "0.8"
        box, picture = overlay.bounding_box(), shown.locator(".stage img").bounding_box()
        assert box["width"] == pytest.approx(picture["width"], abs=1.5)
        assert box["height"] == pytest.approx(picture["height"], abs=1.5)
        painted = """(c) => {
          const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
          return pixels.filter((_, place) => place % 4 === 3).reduce((a, b) => Math.max(a, b));
        }"""
        assert overlay.evaluate(painted) > 150
        shown.locator("#fade").focus()
        shown.keyboard.press("Home")
        assert overlay.evaluate("(c) => c.style.opacity") == "0"
        shown.keyboard.press("ArrowRight")  # the slider's key here, not the next question's
        assert overlay.evaluate("(c) => c.style.opacity") == "0.01"
        assert "1 of 30" in shown.text_content(".detail-top")
        read = shown.locator(".tokens").text_content()
        assert "Choices: A. " in read
        assert shown.locator(".tokens span").count() > 10


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1400, "light"),
        (400, "dark"),
        pytest.param(1400, "dark", marks=pytest.mark.slow),
        pytest.param(400, "light", marks=pytest.mark.slow),
    ],
)
def test_contrast_is_enough_and_nothing_sticks_out(browser, page, width, scheme):
    with opened(browser, page, width, scheme) as shown:
        for detail in (False, True):
            if detail:
                shown.select_option("#f-result", "map")
                shown.locator(FIRST).click()
            found = shown.evaluate(CONTRAST)
            assert found["seen"] > 200
            assert not found["bad"]
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            inside = "(d) => [d.scrollWidth, d.clientWidth]"
            wide, room = shown.locator("#detail").evaluate(inside)
            assert wide <= room
        dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 24)"
        assert dark == (scheme == "dark")


def test_theme_button_goes_around_the_themes(browser, page):
    with opened(browser, page) as shown:
        colours, names = [], []
        for _ in range(4):
            colours.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
            shown.click("#theme")
            names.append(shown.get_by_role("button", name="Theme").inner_text())
        assert names == ["Theme: light", "Theme: dark", "Theme: system", "Theme: light"]
        assert "light, dark" in shown.get_attribute("#theme", "title")
        light, dark = "rgb(244, 246, 249)", "rgb(14, 18, 24)"
        assert colours == [light, light, dark, light]  # as the system has it, light, dark, and around


def test_pictures_plots_and_controls_have_labels(browser, page):
    with opened(browser, page) as shown:
        alts = shown.locator("img").evaluate_all("all => all.map((one) => one.alt)")
        assert len(alts) == 24
        assert all(alt.startswith("Picture of the question: ") for alt in alts)
        labels = shown.locator("[role=img]").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        assert len(labels) >= 11
        assert any("95% intervals" in label and "what: " in label for label in labels)
        named = "(one) => one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim()"
        unnamed = f"all => all.filter((one) => !({named})(one)).length"
        assert shown.locator("button, select, input").evaluate_all(unnamed) == 0


@pytest.fixture(scope="module")
def curved(images, scpc, tmp_path_factory):
    """A report on curves with awkward numbers: 300 steps, seven epochs."""
    from torch.utils.tensorboard import SummaryWriter

    out = tmp_path_factory.mktemp("curved") / "run"
    write_run(out, some_predictions(images, 40, 1), scpc / "images")
    rows = [{"epoch": n, "train_loss": 1.0 / (n + 3), "val_accuracy": 61.37 + n / 7, "val_loss": 0.7} for n in range(7)]
    (out / "log.txt").write_text("\n".join(map(json.dumps, rows)))
    with SummaryWriter(str(out / "tensorboard")) as writer:
        for step in range(1, 301):
            writer.add_scalar("train/loss", 0.7 + 2 * (step < 120) + 0.3 * (-1) ** step, step)
            writer.add_scalar("train/lr", 0.00073 * (1 - step / 301), step)
    assert main(["report", str(out), "--output", str(out.parent / "r.html")]) == 0
    return out.parent / "r.html"


def ticks(plot, axis) -> list[str]:
    return plot.locator(f"text.{axis}-tick").all_text_contents()


@pytest.mark.parametrize("width", [390, 1400])
def test_ticks_are_1_2_5_apart_and_short(browser, curved, width):
    with opened(browser, curved, width) as shown:
        plots = shown.locator("#training .plot")
        for place in range(plots.count()):
            plot = plots.nth(place)
            plot.focus()
            for _ in range(3):  # whole, and zoomed in
                for axis in ("x", "y"):
                    texts = ticks(plot, axis)
                    values = [float(text) for text in texts]
                    assert len(set(texts)) == len(texts) >= 2
                    assert max(map(len, texts)) <= 7, texts
                    steps = [b - a for a, b in pairwise(values)]
                    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
                    assert f"{steps[0]:.3e}"[:5] in ("1.000", "2.000", "5.000"), texts
                    assert axis == "y" or all(value.is_integer() for value in values)
                plot.press("+")
        assert ticks(shown.get_by_role("group", name="Validation loss"), "x")


def test_plots_zoom_by_dragging_and_by_keys_and_come_back(browser, curved):
    with opened(browser, curved) as shown:
        plot = shown.get_by_role("group", name="Training loss")
        panel = shown.locator("figure", has=plot)
        everything = ticks(plot, "x")
        show_all = panel.get_by_role("button", name="Show all")
        assert not show_all.is_visible()
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()

        def drag():
            shown.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 120)
            shown.mouse.down()
            shown.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 100, steps=4)
            assert plot.locator(".picked").bounding_box()["width"] == pytest.approx(0.2 * box["width"], abs=3)
            shown.mouse.up()

        drag()
        seen = [int(text) for text in ticks(plot, "x")]
        assert min(seen) >= 120
        assert max(seen) <= 240
        shown.mouse.dblclick(box["x"] + 100, box["y"] + 100)
        assert ticks(plot, "x") == everything
        drag()
        show_all.click()
        assert ticks(plot, "x") == everything
        assert shown.evaluate("document.activeElement.className") == "plot"  # the button went, the focus stays near
        plot.press("+")
        plot.press("+")
        middle = [int(text) for text in ticks(plot, "x")]
        assert 100 < min(middle) < max(middle) < 200
        plot.press("ArrowRight")
        assert [int(text) for text in ticks(plot, "x")] != middle
        assert show_all.is_visible()
        plot.press("0")
        assert ticks(plot, "x") == everything
        for _ in range(20):
            plot.press("+")
        assert len(ticks(plot, "x")) >= 2  # never closer than what can be seen


def test_smoothing_draws_a_calmer_line_and_leaves_the_raw_one_faint(browser, curved):
    with opened(browser, curved) as shown:
        plot = shown.get_by_role("group", name="Training loss")
        raw = plot.locator("path.curve").get_attribute("d")
        shown.get_by_label("Smoothing").focus()
        shown.keyboard.press("End")
        assert plot.locator("path.curve.raw").get_attribute("d") == raw
        assert float(plot.locator("path.curve.raw").evaluate("(e) => getComputedStyle(e).opacity")) < 0.5

        def swing(line):
            heights = [float(point.split(",")[1]) for point in line[1:].split("L")][200:]
            return max(heights) - min(heights)

        assert swing(plot.locator("path.curve.mean").get_attribute("d")) < 0.2 * swing(raw)
        assert shown.get_by_role("group", name="Learning rate").locator("path.mean").count() == 0
        plot.focus()
        for _ in range(8):  # however near, the calm line stays in sight
            shown.keyboard.press("+")
        low, high, left, right = 30, 210, 50, plot.bounding_box()["width"] - 16
        line = plot.locator("path.curve.mean").get_attribute("d")[1:].split("L")
        inside = [y for x, y in (map(float, point.split(",")) for point in line) if left <= x <= right]
        assert inside
        assert low <= min(inside) <= max(inside) <= high
        shown.keyboard.press("0")
        shown.get_by_label("Smoothing").focus()
        shown.keyboard.press("Home")
        assert plot.locator("path.curve").count() == 1


def test_baselines_are_lines_in_the_plots_and_words(browser, curved):
    with opened(browser, curved) as shown:
        for name in ("Validation score", "Accuracy by question word"):
            panel = shown.locator("figure", has=shown.get_by_role("heading", name=name))
            legend = panel.locator(".legend li").all_text_contents()
            assert legend[0] == "blind guessing, 25.0%"
            assert legend[1].startswith("always the likeliest answer, ")
            assert panel.locator("path.reference").count() == 2
            area, inside = panel.locator("svg").bounding_box(), panel.locator("path.likeliest").bounding_box()
            assert area["x"] < inside["x"] < area["x"] + area["width"]
            assert area["y"] <= inside["y"] + 2 < area["y"] + area["height"]
        lead = shown.inner_text("#metrics-lead")
        assert "blind guessing gets 25.0%" in lead
        assert "(counted in the questions themselves)" in lead


def test_a_run_without_predictions_shows_its_curves_alone(browser, trained, tmp_path):
    copy = tmp_path / "curves"
    copy.mkdir()
    (copy / "log.txt").write_bytes((trained / "log.txt").read_bytes())
    assert main(["report", str(copy), "--output", str(tmp_path / "r.html")]) == 0
    with opened(browser, tmp_path / "r.html") as shown:
        titles = shown.locator("#training h3").all_text_contents()
        assert titles == ["Training loss", "Validation score", "Validation loss", "Learning rate", "Throughput"]
        assert not shown.locator("#questions").is_visible()
        assert not shown.locator("#metrics").is_visible()


def test_open_ended_answers_and_unknown_truths_are_shown(browser, tmp_path):
    rows = [
        {"id": str(n), "question": "what is it?", "answer": "a cat", "probabilities": {"a cat": 0.6, "A": 0.1}}
        for n in range(3)
    ]
    rows[1] |= {"truth": "a dog", "score": 0.0}
    (tmp_path / "predictions.json").write_text(json.dumps(rows))
    assert main(["report", str(tmp_path / "predictions.json"), "--output", str(tmp_path / "r.html")]) == 0
    with opened(browser, tmp_path / "r.html") as shown:
        texts = shown.locator(".card >> nth=1 >> .option").all_inner_texts()
        assert [text.split("\n")[0] for text in texts] == ["a cat", "A", "a dog"]
        badges = shown.locator(".card .head .badge").all_text_contents()
        assert badges == ["answer not known", "✗ wrong", "answer not known"]
        assert "picture, always answering “a dog” (counted in the questions themselves) gets" in shown.inner_text(
            "#metrics-lead"
        )
        assert not shown.locator("#training").is_visible()


def test_one_question_is_told_in_the_singular(browser, tmp_path):
    row = {"id": "1", "question": "what is it?", "answer": "a cat", "probabilities": {"a cat": 0.6}}
    (tmp_path / "predictions.json").write_text(json.dumps([row | {"truth": "a cat", "score": 1.0}]))
    assert main(["report", str(tmp_path / "predictions.json"), "--output", str(tmp_path / "r.html")]) == 0
    with opened(browser, tmp_path / "r.html") as shown:
        assert shown.text_content("#count") == "1 of 1 question"
        assert "1 question" in shown.locator("#metrics svg text").all_text_contents()


@pytest.mark.slow
def test_ten_thousand_questions_open_in_three_seconds(browser, tmp_path, capsys):
    """About ten thousand pictures, as noisy as photographs at best are."""
    import numpy as np

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    names = []
    for number in range(10_000):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)
        names.append(f"{number}.jpg")
        picture.save(tmp_path / "images" / names[-1], quality=80)
    predictions = some_predictions(names, 10_000, 1)
    write_run(tmp_path / "run", predictions, tmp_path / "images")
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "run"), "--output", str(output)]) == 0
    size = output.stat().st_size
    assert size < 30_000_000
    seconds, whole = [], []
    for _ in range(3):  # the quickest is the page's own time, others have the machine's in them
        started = time.monotonic()
        with opened(browser, output, until="commit") as shown:
            wait_for(shown, "document.querySelector('.card img')?.complete")
            seconds.append(time.monotonic() - started)
            assert shown.text_content("#count") == "10,000 of 10,000 questions"
            shown.wait_for_load_state("load")
            whole.append(time.monotonic() - started)
    with capsys.disabled():
        print(f"\n{size / 1e6:.1f} MB, usable after {min(seconds):.2f} s, all of it there after {min(whole):.2f} s")
    assert min(seconds) < 3
    with opened(browser, output, until="commit") as shown:  # its pictures are filled in when they have arrived
        shown.select_option("#f-order", "worst")
        shown.wait_for_load_state("load")
        pictures = "all => all.length === 24 && all.every((one) => one.src.length > 500)"
        wait_for(shown, f"({pictures})([...document.querySelectorAll('.card img')])")
    with opened(browser, output) as shown:
        assert shown.text_content("#count") == "10,000 of 10,000 questions"
        for key in ("#next", "#next"):
            shown.click(key)
        assert shown.locator(".card img").evaluate_all("all => all.every((one) => one.src.length > 500)")
