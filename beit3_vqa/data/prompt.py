"""The text that stands for a question and its options."""

import string
from collections.abc import Sequence

from beit3_vqa.errors import InputError
from beit3_vqa.options import DEFAULT_PROMPT_TEMPLATE

SPECIAL_TOKENS = 2  # <s> and </s>


class PromptTemplate:
    """The text of a multiple-choice question, such as `{question} Choices: A. {a} B. {b} C. {c} D. {d}`.

    Args:
        template: with the fields `{question}` and `{a}`, `{b}`, ... for each option, each at least once.
        num_choices: how many options there are.

    Raises:
        InputError: an unknown or missing field, or a stray brace.
    """

    def __init__(self, template: str = DEFAULT_PROMPT_TEMPLATE, num_choices: int = 4):
        self.template = template
        self.letters = string.ascii_lowercase[:num_choices]
        expected = {"question", *self.letters}
        try:
            parts = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
        except ValueError as error:
            raise InputError(f"--prompt_template {template!r}: {error}. Write {{{{ for a brace.") from error
        found = {name for name, _, _ in parts if name is not None}
        if found != expected or any(spec or conversion for _, spec, conversion in parts):
            unknown = ", ".join(f"{{{name}}}" for name in sorted(found - expected)) or "none"
            missing = ", ".join(f"{{{name}}}" for name in sorted(expected - found)) or "none"
            raise InputError(
                f"--prompt_template {template!r}: fields must be {{question}} and "
                f"{', '.join(f'{{{letter}}}' for letter in self.letters)}, without a format; "
                f"unknown: {unknown}; missing: {missing}."
            )

    def __call__(self, question: str, choices: Sequence[str]) -> str:
        """The text of a question and its options (braces in them are text); without options, the question alone."""
        if not choices:
            return question
        return self.template.format(question=question, **dict(zip(self.letters, choices, strict=True)))
