"""What `check.find` returns, field by field; `check.json` holds the same."""

from typing import Literal, TypedDict

Nearness = Literal["same", "exact", "near"]  # how a copy equals another: the same file, the same bytes, a near copy


class CopiedImage(TypedDict):
    """An image of a group of copies, and its rows in each split."""

    image: str
    rows: dict[str, int]


class CopyGroups(TypedDict):
    """Groups of images that are copies of each other."""

    groups: int
    images: int
    listed: list[list[CopiedImage]]


class CopiesFound(TypedDict):
    """All copies, and whether near ones were looked for among all images."""

    near_copies_looked_for: bool
    complete: bool
    exact: CopyGroups
    near: CopyGroups


class ImageInTrain(TypedDict):
    """An image of another split, and the one in train that it equals."""

    image: str
    train: str
    kind: Nearness


class InTrain(TypedDict):
    """How many images of a split train has too, and how many rows they have."""

    images: int
    same: int
    exact: int
    near: int
    rows: int
    listed: list[ImageInTrain]


class AskedRow(TypedDict):
    """A row that asks a question."""

    split: str
    id: str
    image: str
    answer: str | None


class RepeatedQuestion(TypedDict):
    """A question that is asked more than once about an image."""

    question: str
    rows: list[AskedRow]


class RepeatedQuestions(TypedDict):
    """Questions that are asked more than once, of one kind."""

    questions: int
    rows: int
    listed: list[RepeatedQuestion]


class RowOfEqualOptions(TypedDict):
    """A row, and the letters of its options that are equal."""

    split: str
    id: str
    letters: list[str]
    options: list[str]
    answer: str | None


class EqualOptions(TypedDict):
    """Rows with equal options, and in how many of them the right option is one."""

    rows: int
    right: int
    listed: list[RowOfEqualOptions]


class PositionCounts(TypedDict):
    """How often each letter is right, and how often chance would make it right."""

    rows: int
    counts: dict[str, int]
    expected: dict[str, float]
    p: float
    dominant: str | None


class OptionLengths(TypedDict):
    """How often the longest option is right, and whether that tells."""

    rows: int
    longest_is_right: float
    chance: float
    p: float
    characters_of_right: float
    characters_of_others: float
    tells: bool


class ScriptWords(TypedDict, total=False):
    """The words of a script; without a tokenizer nothing is known of its tokens."""

    words: int
    unknown_words: int
    tokens: int
    single_characters: int
    warns: bool


class TextsFound(TypedDict):
    """The words of each script, and the tokenizer that they were given to."""

    tokenizer: str | None
    every_row: bool
    scripts: dict[str, ScriptWords]


class Findings(TypedDict):
    """Everything that is found; the keys of a dict are splits, if nothing else is said."""

    version: int
    rows: dict[str, int]
    images: dict[str, int]
    copies: CopiesFound
    in_train: dict[str, InTrain]
    groups_over_folds: int
    repeated_questions: dict[str, RepeatedQuestions]  # by kind: same_answer, other_answers, unknown_answer
    equal_options: EqualOptions
    positions: dict[str, PositionCounts]
    lengths: dict[str, OptionLengths]
    texts: TextsFound
