"""Single questions that somebody asks a trained model: what they must be like, and what is kept of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from beit3_vqa.config import GROUP_OF
from beit3_vqa.errors import InputError
from beit3_vqa.schema import Example

MOST_OPTIONS = 10  # that a model which takes any number is asked about
EVALUATE = "`beit3-vqa finetune --eval --resume FILE` evaluates it on a split."
# Where a checkpoint's belongings lie now, and where it is to compute: the options of who loads one to ask it.
_PLACES = frozenset({"sentencepiece_model", "pretrained", "device"})


@dataclass(frozen=True)
class Asked:
    """A question and its image, checked and ready for the model; see `run.Answerer.prepare`.

    Attributes:
        example: the question.
        inputs: what the model's processor made of it, on the CPU.
        size: width and height of the upright image in pixels.
    """

    example: Example
    inputs: dict[str, Any]
    size: tuple[int, int]


def check_question(question: str, choices: Sequence[str], option_counts: range) -> None:
    """InputError where a question is empty, or its options aren't as many as a model takes, different and not empty."""
    if not question.strip():
        raise InputError("the question is empty.")
    if any(not choice.strip() for choice in choices) or len(set(choices)) < len(choices):
        raise InputError(f"the options must differ, and none may be empty: {', '.join(map(repr, choices))}.")
    if not option_counts:
        if choices:
            raise InputError("the model answers open-ended questions: leave the choices out.")
        return
    fewest, most = option_counts[0], option_counts[-1]
    wanted = f"{fewest} to {most}" if most > fewest else f"{fewest}"
    if not choices:
        raise InputError(f"the model answers multiple-choice questions: give {wanted} choices.")
    if len(choices) not in option_counts:
        raise InputError(f"the model chooses among {wanted} options; {len(choices)} were given.")


@contextmanager
def naming_saved_options(where: str) -> Iterator[None]:
    """Let errors call the options that the checkpoint `where` was saved with its own: who asks it can't give them."""

    def named(flag: re.Match[str]) -> str:
        return f"its {flag[1]}" if flag[1] in GROUP_OF and flag[1] not in _PLACES else flag[0]

    try:
        yield
    except InputError as error:
        said = re.sub(r"--(\w+)", named, str(error))
        if said == str(error):
            raise
        raise InputError(said if said.startswith(where) else f"{where}: {said}") from error
