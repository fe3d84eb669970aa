"""Options of a run without a command line."""

from typing import Any

from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.resolve import GivenOptions, resolve

# As `--trust_checkpoint` on the command line gives them.
TRUSTING = GivenOptions({"trust_checkpoint": True}, typed_flags=frozenset({"trust_checkpoint"}))


def build_config(values: dict[str, Any]) -> RunConfig:
    """Return the options of a run that begins with these, and nothing else, given."""
    return resolve(GivenOptions(values))
