"""What the package tells goes through logging, and is shown as if it were printed."""

import io
import logging
from contextlib import redirect_stdout

import pytest

import beit3_vqa  # noqa: F401
from beit3_vqa.runtime.console import show_logs

LOGGER = logging.getLogger("beit3_vqa.data.rows")


def test_messages_go_to_the_standard_output_of_that_moment(capsys):
    LOGGER.info("100% of rows")
    with redirect_stdout(io.StringIO()) as elsewhere:
        LOGGER.warning("two")
    assert capsys.readouterr() == ("100% of rows\n", "")
    assert elsewhere.getvalue() == "two\n"


def test_messages_are_shown_once_however_often_it_is_asked_for(capsys, monkeypatch):
    root = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [root])
    show_logs()
    LOGGER.info("one")
    assert capsys.readouterr().out == "one\n"
    assert root.stream.getvalue() == ""


@pytest.fixture
def package_logger():
    logger = logging.getLogger("beit3_vqa")
    level = logger.level
    yield logger
    logger.setLevel(level)


@pytest.mark.parametrize(("level", "shown"), [(logging.WARNING, "a warning\n"), (logging.ERROR, "")])
def test_a_level_that_somebody_has_set_stays(level, shown, capsys, package_logger):
    package_logger.setLevel(level)
    show_logs()
    LOGGER.info("a note")
    LOGGER.warning("a warning")
    assert capsys.readouterr().out == shown
