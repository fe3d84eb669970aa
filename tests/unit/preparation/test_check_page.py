"""check.html: it escapes what comes from data, loads nothing, and stays small."""

import re
import shutil
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest
from PIL import Image

from beit3_vqa.preparation import PrepareOptions, check_page, prepare
from beit3_vqa.preparation.check_page import write_check
from tests.helpers.browser import chromium, needs_chromium
from tests.helpers.scpc import HEADER, copy_photographs, write_csv

HOSTILE = "</td><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
NAME = "a'\"><img src=x>&amp;.jpg"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page in which every text that comes from data tries to be markup."""
    folder = tmp_path_factory.mktemp("check")
    images = copy_photographs(folder / "images")
    Image.open(images / "rocket.jpg").save(images / NAME, quality=50)
    shutil.copy(images / "coffee.png", images / "\u202egnp.copy.png")
    options = [f"{HOSTILE} A", f"{HOSTILE} a.", "</style>", "{{ 7 * 7 }}"]
    rows = [
        [f"{HOSTILE}{number}", image, f"{HOSTILE}?", *options, "AC"[number % 2]]
        for number, image in enumerate((NAME, NAME, "coffee.png", "astronaut.png"))
    ]
    test = [
        [f"test{number}", image, "What?", "가나다", "b", "c", "d", "A"]
        for number, image in enumerate(("rocket.jpg", "\u202egnp.copy.png"))
    ]
    train = write_csv(folder / "train.csv", rows)
    data = {"train": str(train), "test": str(write_csv(folder / "test.csv", test, HEADER))}
    prepare("choices", data, PrepareOptions(folder / "out", images, val_ratio=0))
    return folder / "out" / "check.html"


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_texts_from_the_data_are_no_markup(page):
    found = Tags(page.read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on") or name == "style"]
    sources = {value.split(",")[0] for tag, name, value in found.attributes if tag == "img" and name == "src"}
    assert sources == {"data:image/webp;base64"}
    assert all(value.startswith("#") for _, name, value in found.attributes if name == "href")
    text = " ".join(found.text)
    for shown in (f"{HOSTILE}?", f"{HOSTILE}0", NAME, f"{HOSTILE} A", "{{ 7 * 7 }}", "</style>"):
        assert shown in text
    assert "\\u202egnp.copy.png" in text  # turned around, it would look like another name
    assert "\u202e" not in text


@contextmanager
def opened(page, width=1300, scheme="light"):
    said, asked = [], []
    with chromium() as browser:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown = context.new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(page.as_uri())
        yield shown
        assert not said
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_page_shows_its_pictures_in_a_browser_and_loads_nothing(page, width, scheme):
    with opened(page, width, scheme) as shown:
        assert shown.title() == "choices: before training"
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        assert shown.locator("img").count() >= 6
        assert shown.locator("img").evaluate_all("all => all.every((one) => one.complete && one.naturalWidth > 0)")
        assert shown.locator(".found .loud").inner_text().startswith("TEST IMAGES IN TRAIN: 2 of 2 ")
        assert HOSTILE in shown.locator("#questions").inner_text()
        background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(244, 246, 249)", "dark": "rgb(14, 18, 24)"}[scheme]
        bar = shown.locator("rect.share").first.evaluate("one => getComputedStyle(one).fill")
        assert bar != "rgb(0, 0, 0)"  # the style is in force under the policy


NONE = {"groups": 0, "images": 0, "listed": []}


def findings(groups, members, **more):
    listed = [
        [{"image": f"{group}_{one}.png", "rows": {"train": 1}} for one in range(members)] for group in range(groups)
    ]
    near = {"groups": groups, "images": groups * members, "listed": listed}
    nobody = {"questions": 0, "rows": 0, "listed": []}
    return {
        "version": 1,
        "rows": {"train": 1},
        "images": {"train": 1},
        "copies": {"near_copies_looked_for": True, "complete": True, "exact": NONE, "near": near},
        "in_train": {},
        "groups_over_folds": 0,
        "repeated_questions": dict.fromkeys(("same_answer", "other_answers", "unknown_answer"), nobody),
        "equal_options": {"rows": 0, "right": 0, "listed": []},
        "positions": {},
        "lengths": {},
        "texts": {"tokenizer": None, "every_row": True, "scripts": {}},
    } | more


def test_a_page_of_many_copies_shows_some_and_counts_the_rest(tmp_path, monkeypatch):
    for group in range(check_page.SHOWN):
        for one in range(check_page.SHOWN_IN_GROUP):
            Image.effect_noise((200, 150), 80).save(tmp_path / f"{group}_{one}.png")
    found = findings(groups=30, members=9)
    assert write_check(tmp_path, found, [], "x", tmp_path) == ["check.html", "check.json"]
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert text.count("<img ") == check_page.SHOWN * check_page.SHOWN_IN_GROUP
    assert text.count("3 more in this group: see check.json.") == check_page.SHOWN
    assert "18 more groups: see check.json." in text
    assert len(text) < check_page.MAX_PICTURES + 200_000
    monkeypatch.setattr(check_page, "MAX_PICTURES", 20_000)
    write_check(tmp_path, found, [], "x", tmp_path)
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert 0 < sum(map(len, re.findall(r"base64,([^\"]*)", text))) <= 20_000
    assert "no picture" in text


def test_one_more_of_anything_is_told_in_the_singular(tmp_path):
    same = {"same": 1, "exact": 0, "near": 0, "rows": 1}
    same["listed"] = [{"image": "a.png", "train": "a.png", "kind": "same"}]
    found = findings(check_page.SHOWN + 1, check_page.SHOWN_IN_GROUP + 1, in_train={"val": same}, groups_over_folds=1)
    write_check(tmp_path, found, [], "x", tmp_path)
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    for says in ("1 more in this group:", "1 more group:", "1 row of val asks about", "1 group of copies lies in"):
        assert says in text


def test_long_texts_are_cut_and_missing_pictures_do_no_harm(tmp_path):
    listed = [
        {"question": "long " * 1000, "rows": [{"split": "train", "id": "1", "image": "../x", "answer": None}] * 2}
    ]
    again = {"questions": 1, "rows": 2, "listed": listed}
    nobody = {"questions": 0, "rows": 0, "listed": []}
    found = findings(0, 0, repeated_questions={"other_answers": nobody, "same_answer": nobody, "unknown_answer": again})
    write_check(tmp_path, found, ["a finding"], "x", tmp_path)
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "long long" in text
    assert text.count("long ") <= check_page.MAX_TEXT // 5 + 1
    assert "not known" in text
    assert "no picture" in text
