"""A real headless Chromium, driven by Playwright."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), "")
# Only a machine without one, that isn't CI, may go without these tests.
needs_chromium = pytest.mark.skipif(
    not CHROMIUM and not os.environ.get("CI"), reason="no Chromium on this machine (apt-get install chromium)"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    assert CHROMIUM, "CI needs Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_for(page: Any, expression: str, seconds: float = 60) -> None:
    """Waits until JavaScript is true.

    Playwright's own `wait_for_function` evaluates text in the page again and again, which a page's policy forbids: it
    works where the first time is enough, and fails on a slow day.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(20)
