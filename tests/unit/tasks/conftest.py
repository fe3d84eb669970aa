"""Coloured shapes with captions, prepared for every task on captions."""

from pathlib import Path

import pytest

from tests.helpers.captioned import prepare_captioned


@pytest.fixture(scope="session")
def captioned(tmp_path_factory) -> Path:
    """The prepared folder of 48 training images, two captions each."""
    return prepare_captioned(tmp_path_factory.mktemp("captioned"), train=48)
