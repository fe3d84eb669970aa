"""Make the text of a question and its options."""

import string
from collections.abc import Callable, Sequence

from beit3_vqa.errors import InputError

SPECIAL_TOKENS = 2  # <s> and </s>
ALL_OPTIONS = "{options}"
ONE_OPTION = "{choice}"


class PromptTemplate:
    """A template for a multiple-choice question, such as `{question} Choices: {options}`.

    Args:
        template: text with the field `{question}` and either `{options}`, which stands for all options of a question
            (`A. cat B. dog`), or `{a}`, `{b}`, ... for each, each at least once.
        num_choices: number of options that questions have at most; None: as many as the template names.

    Raises:
        InputError: an unknown or missing field, or a stray brace.
    """

    def __init__(self, template: str, num_choices: int | None = None):
        self.template = template
        named = [letter for letter in string.ascii_lowercase if f"{{{letter}}}" in template]
        self.letters = string.ascii_lowercase[: num_choices or max(len(named), 2)]
        self.any_number = ALL_OPTIONS in template
        _check_fields(template, ("question", *(["options"] if self.any_number else self.letters)))

    def naming_each(self) -> str:
        """Return the template with `{a}`, `{b}`, ... in the place of `{options}`, for as many as there may be."""
        return self.template.replace(
            ALL_OPTIONS, " ".join(f"{letter.upper()}. {{{letter}}}" for letter in self.letters)
        )

    def __call__(self, question: str, choices: Sequence[str]) -> str:
        """Return the text of a question and its options (braces in them are text); without options, the question.

        Raises:
            InputError: another number of options than the template names.
        """
        if not choices:
            return question
        if self.any_number:
            options = (f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False))
            return self.template.format(question=question, options=" ".join(options))
        if len(choices) != len(self.letters):
            raise InputError(
                f"--prompt_template {self.template!r}: is for {len(self.letters)} options, and a question has "
                f"{len(choices)}. {ALL_OPTIONS} stands for all options of a question."
            )
        return self.template.format(question=question, **dict(zip(self.letters, choices, strict=True)))


class OptionTemplate:
    """A template for one option of a question, such as `Question: {question} Answer: {choice}`.

    Args:
        template: text with the fields `{question}` and `{choice}`, each at least once.

    Raises:
        InputError: an unknown or missing field, or a stray brace.
    """

    any_number = True

    def __init__(self, template: str):
        self.template = template
        _check_fields(template, ("question", "choice"))

    def naming_each(self) -> str:
        """Return the template, as `PromptTemplate` does with a place for each option."""
        return self.template

    def __call__(self, question: str, choice: str) -> str:
        """Return the text of a question and one option (braces in them are text)."""
        return self.template.format(question=question, choice=choice)


def _check_fields(template: str, wanted: Sequence[str]) -> None:
    """Raise InputError unless a template has each wanted field at least once and no other."""
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"--prompt_template {template!r}: {error}. Write {{{{ for a brace.") from error
    found = {name for name, _, _ in parts if name is not None}
    if found != set(wanted) or any(spec or conversion for _, spec, conversion in parts):
        unknown = ", ".join(f"{{{name}}}" for name in sorted(found - set(wanted))) or "none"
        missing = ", ".join(f"{{{name}}}" for name in sorted(set(wanted) - found)) or "none"
        first, *others = (f"{{{name}}}" for name in wanted)
        raise InputError(
            f"--prompt_template {template!r}: fields must be {first} and {', '.join(others)}, without a format; "
            f"unknown: {unknown}; missing: {missing}."
        )


def cut_question(question: str, encode: Callable[[str], list[int]], room: int) -> list[int] | None:
    """Shorten a question at its end until its prompt has at most `room` ids.

    Args:
        question: a question whose prompt is too long.
        encode: question -> ids of its prompt, without the special ones.
        room: largest number of ids.

    Returns:
        the ids of the prompt; None if even an empty question is too long.
    """
    fits, too_long = -1, len(question)  # a bisection between these lengths
    best: list[int] | None = None
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        ids = encode(question[:middle].rstrip())
        if len(ids) <= room:
            fits, best = middle, ids
        else:
            too_long = middle
    return best
