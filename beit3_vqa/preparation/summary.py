"""The summary of `prepare`: what it found and wrote, on one screen."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from beit3_vqa.config.options import MAX_BPE_TOKENS
from beit3_vqa.data.prompt import SPECIAL_TOKENS, PromptTemplate
from beit3_vqa.data.rows import LETTERS, Row, all_wordings
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.errors import one_line, plural
from beit3_vqa.runtime.files import one_form

_ANSWERS_SHOWN = 5


@dataclass(frozen=True)
class PromptLengths:
    """Lengths of the prompts.

    Attributes:
        longest: length of the longest, in tokens with `<s>` and `</s>`, or in words if there is no tokenizer.
        longest_id: the id of its row.
        cut: how many are longer than `MAX_BPE_TOKENS`; None if they were counted in words.
    """

    longest: int
    longest_id: str
    cut: int | None


@dataclass(frozen=True)
class Summary:
    """The findings of `prepare`: `text()` is for people, `numbers()` goes to dataset.json.

    Attributes:
        format: the format that was read.
        data_path: the prepared folder.
        rows: rows in each split.
        answers: for each split, how often each answer occurs (a letter for multiple choice).
        classes: entries of the label table.
        images: distinct images.
        sizes: smallest, median and largest image by area, (width, height) in pixels.
        prompts: lengths of the prompts; None if rows have no text.
        notes: what was interpreted, counted or left aside.
        files: names of the files in `data_path`.
        check: whether this was only a check, which writes no file.
        findings: what somebody should know before training; None if nobody looked.
    """

    format: str
    data_path: Path
    rows: dict[str, int]
    answers: dict[str, dict[str, int]]
    classes: int
    images: int
    sizes: tuple[tuple[int, int], ...]
    prompts: PromptLengths | None
    notes: tuple[str, ...]
    files: tuple[str, ...]
    check: bool
    findings: tuple[str, ...] | None = None

    def numbers(self) -> dict[str, object]:
        """Return the numbers that dataset.json keeps, as plain data."""
        most_common = {split: dict(list(answers.items())[:_ANSWERS_SHOWN]) for split, answers in self.answers.items()}
        return {
            "classes": self.classes,
            "most_common_answers": most_common,
            "images": self.images,
            "image_sizes": [f"{width}x{height}" for width, height in self.sizes],
            "prompts": asdict(self.prompts) if self.prompts else None,
            "notes": list(self.notes),
        }

    def _answer_lines(self) -> list[str]:
        balances = self.answers.items() if self.classes or any(self.answers.values()) else ()
        return [f"{split:<5} {_balance(counts, self.rows[split])}" for split, counts in balances]

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """Return the summary as lines for a terminal."""
        files = "none: this was a check" if self.check else f"{', '.join(self.files)} in {self.data_path}"
        sections: dict[str, Sequence[str]] = {
            self.format: ["every row and image is fine" if self.check else "prepared"],
            "rows": ["  ".join(f"{split} {count:,}" for split, count in self.rows.items())],
            "answers": self._answer_lines(),
            "images": [_sizes_text(self.images, self.sizes)],
            "prompts": [_prompts_text(self.prompts, sum(self.rows.values()))],
            "changes": ["0 rows dropped", *self.notes],
            "findings": () if self.findings is None else self.findings or ("nothing stands out",),
            "files": [files],
        }
        width = max(map(len, sections)) + 2
        lines = []
        for title, entries in sections.items():
            lines += [f"{'' if place else title:<{width}}{one_line(entry)}" for place, entry in enumerate(entries)]
        return "\n".join(lines)


def _balance(counts: Mapping[str, int], rows: int) -> str:
    known = sum(counts.values())
    if not known:
        return "not known"
    shown = list(counts.items())[:_ANSWERS_SHOWN]
    parts = [f"{answer} {count:,} ({count / known:.1%})" for answer, count in shown]
    if len(counts) > len(shown):
        parts.append(f"... {len(counts):,} different answers")
    if known < rows:
        parts.append(f"not known {rows - known:,}")
    return "  ".join(parts)


def _sizes_text(images: int, sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    smallest, median, largest = (f"{width}x{height}" for width, height in sizes)
    return f"{images:,} distinct; smallest {smallest}, median {median}, largest {largest} pixels"


def _prompts_text(prompts: PromptLengths | None, rows: int) -> str:
    if prompts is None:
        return "none: images alone"
    if prompts.cut is None:
        return (
            f"longest {plural(prompts.longest, 'word')} ({prompts.longest_id}); a tokenizer is needed to count tokens"
        )
    return (
        f"longest {plural(prompts.longest, 'token')} ({prompts.longest_id}); "
        f"{prompts.cut:,} of {rows:,} would be cut at {MAX_BPE_TOKENS}"
    )


def build_prompts(rows: Sequence[Row], template: PromptTemplate) -> list[str]:
    """Return the prompts of the rows that have a text, one for each wording."""
    return [template(text, row.get("choices", ())) for row in rows for text in _texts(row)]


def _texts(row: Row) -> list[str]:
    """Return every wording of a row's question, or its other text; empty if it has none."""
    if row.get("question"):
        return all_wordings(row)
    return [row["text_segment"]] if row.get("text_segment") else []


def measure_prompts(rows: Sequence[Row], template: PromptTemplate, tokenizer: Tokenizer | None) -> PromptLengths | None:
    """Return the lengths of the prompts of `rows`; None if none has a text."""
    owners = [row for row in rows for _ in _texts(row)]
    prompts = build_prompts(rows, template)
    if not prompts:
        return None
    if tokenizer is None:
        lengths = [len(prompt.split()) for prompt in prompts]
        cut = None
    else:
        lengths = [len(ids) + SPECIAL_TOKENS for ids in tokenizer.encode_batch(prompts)]
        cut = len({id(row) for row, length in zip(owners, lengths, strict=True) if length > MAX_BPE_TOKENS})
    longest = max(range(len(owners)), key=lengths.__getitem__)
    row = owners[longest]
    name = row.get("id", row.get("identifier", row["image_path"]))
    return PromptLengths(lengths[longest], str(name), cut)


def count_answers(splits: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, int]]:
    """Count how often each answer occurs in each split, letters in their order, other answers by frequency."""
    balance = {}
    for split, rows in splits.items():
        known = (row for row in rows if "answer" in row or "label" in row)
        counts = Counter(one_form(str(row.get("answer", row.get("label")))) for row in known)
        if any("choices" in row for row in rows):
            widest = max(len(row.get("choices", ())) for row in rows)
            balance[split] = {letter: counts[letter] for letter in LETTERS[:widest] if counts}
        else:
            balance[split] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return balance


def describe_sizes(sizes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the smallest, median and largest (width, height) by area; empty if there is no image."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else ()
