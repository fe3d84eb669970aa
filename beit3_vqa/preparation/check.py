"""Look at questions before anybody trains on them: copies, contradictions, answers that give themselves away.

`find` returns everything as plain data, which is `check.json`; `tell` says in lines what somebody should know.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

from beit3_vqa.data.answers import ARTICLES
from beit3_vqa.data.index import path_key
from beit3_vqa.data.rows import LETTERS, Row, all_wordings
from beit3_vqa.data.tables import comparable
from beit3_vqa.data.tokenizer import UNK_ID, Tokenizer
from beit3_vqa.errors import plural
from beit3_vqa.preparation.copies import Copies
from beit3_vqa.preparation.findings import (
    CopiedImage,
    CopiesFound,
    CopyGroups,
    EqualOptions,
    Findings,
    InTrain,
    Nearness,
    OptionLengths,
    PositionCounts,
    RepeatedQuestions,
    RowOfEqualOptions,
    ScriptWords,
    TextsFound,
)
from beit3_vqa.runtime.files import one_form

VERSION = 1
LISTED = 10_000  # of each kind, in the data; counts are of all
_EXAMPLES = 3
# A hint needs both: chance alone would do it once in 1,000 data sets, and it is worth somebody's time.
_RARE = 0.001
_MORE_OFTEN = 1.25  # times as often as by chance
_LONGER = 0.05  # share of the rows
_MAX_TEXTS = 50_000  # rows whose words are looked up, evenly taken
_FEW_WORDS = 10  # of a script: the name of a street tells nothing about a data set
_MUCH_UNKNOWN = 0.02  # of the words of a script
_MUCH_CUT = 0.6  # of the tokens of a script are single characters

_MARKS = " .,;:!?\"'"
# A word is of the first script of which it has a letter: GPS가 is Korean. Kana come before Han, which Japanese has too.
SCRIPTS = {
    "Hangul": re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]"),
    "Kana": re.compile("[\u3041-\u30ff\u31f0-\u31ff]"),
    "Han": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "Cyrillic": re.compile("[\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f]"),
    "Latin": re.compile("[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]"),
}
OTHER = "other"
_BY_LETTER = ("Hangul", "Cyrillic")  # scripts in which it is no good sign if tokens are single characters

Splits = Mapping[str, Sequence[Row]]


def find(splits: Splits, copies: Copies, tokenizer: Tokenizer | None) -> Findings:
    """Return all that is found in the rows of each split, as plain data."""
    paths = {split: Counter(row["image_path"] for row in rows) for split, rows in splits.items()}
    key_of = {path: path_key(path) for counts in paths.values() for path in counts}
    images: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for split, counts in paths.items():
        for path, number in counts.items():
            images[split][key_of[path]] += number
    return {
        "version": VERSION,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "images": {split: len(counts) for split, counts in images.items()},
        "copies": _describe_copies(images, copies),
        "in_train": {
            split: _in_train(images, split, copies) for split in images if split != "train" and "train" in images
        },
        "groups_over_folds": _over_folds(splits.get("train", ()), copies),
        "repeated_questions": _repeated_questions(splits, key_of, copies),
        "equal_options": _equal_options(splits),
        "positions": {split: found for split, rows in splits.items() if (found := _positions(rows))},
        "lengths": {split: told for split, rows in splits.items() if (told := _lengths(rows))},
        "texts": _scripts(splits, tokenizer),
    }


def _every(splits: Splits) -> Iterator[tuple[str, Row]]:
    """Yield each row with its split; a list of millions of pairs would cost more time than the look at them."""
    return ((split, row) for split, rows in splits.items() for row in rows)


def tell(found: Findings, cut_here: bool) -> list[str]:
    """Return a line for each thing that somebody should know before training.

    Args:
        found: what `find` returned.
        cut_here: whether the validation split was cut from train, so that it could be cut otherwise.
    """
    group = "; --group_near_copies keeps them on one side"
    lines = [
        _tell_in_train(split, of, group if cut_here and split == "val" else "")
        for split, of in found["in_train"].items()
    ]
    if found["groups_over_folds"]:
        number = found["groups_over_folds"]
        lines.append(f"{plural(number, 'group')} of copies lie{'s' * (number == 1)} in more than one fold{group}")
    lines.append(_tell_repeated(found["repeated_questions"]["other_answers"]))
    equal = found["equal_options"]
    if equal["rows"]:
        right = f", the right one among them in {equal['right']:,}" if equal["right"] else ""
        lines.append(
            f"{plural(equal['rows'], 'row')} with options that are equal but for case, marks or an article{right}"
        )
    lines += [*_tell_guesses(found["positions"], found["lengths"]), _tell_unknown(found["texts"])]
    exact, near = found["copies"]["exact"], found["copies"]["near"]
    if exact["groups"] or near["groups"]:
        alike = f"{near['images']:,} in {plural(near['groups'], 'group')} of near copies"
        lines.append(
            f"copies: {plural(exact['images'], 'image')} in {plural(exact['groups'], 'group')} of the same bytes, "
            f"{alike if found['copies']['near_copies_looked_for'] else 'near copies not looked for'}"
        )
    if not found["copies"]["complete"]:
        lines.append("so many images look alike that not all of them were compared: there may be more near copies")
    return [line for line in lines if line]


# Copies


def _describe_copies(images: Mapping[str, Counter[str]], copies: Copies) -> CopiesFound:
    """Return the groups of copies; near ones are those whose members don't all have the same bytes."""
    exact, near = _groups(copies.exact), _groups(copies.near)
    near = [group for group in near if len({copies.exact.get(name, name) for name in group}) > 1]
    return {
        "near_copies_looked_for": copies.decoded,
        "complete": copies.complete,
        "exact": _describe_groups(exact, images),
        "near": _describe_groups(near, images),
    }


def _describe_groups(groups: Sequence[Sequence[str]], images: Mapping[str, Counter[str]]) -> CopyGroups:
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "listed": [[_with_rows(name, images) for name in group] for group in groups[:LISTED]],
    }


def _groups(first: Mapping[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(first):
        groups[first[name]].append(name)
    return list(groups.values())


def _with_rows(name: str, images: Mapping[str, Counter[str]]) -> CopiedImage:
    return {"image": name, "rows": {split: counts[name] for split, counts in images.items() if name in counts}}


def _in_train(images: Mapping[str, Counter[str]], split: str, copies: Copies) -> InTrain:
    """Return the images of a split that train has too, and how near they are."""
    train = sorted(images["train"])
    kinds: list[tuple[Nearness, Mapping[str, str]]] = [("same", {}), ("exact", copies.exact), ("near", copies.near)]
    there = {kind: {first.get(name, name): name for name in reversed(train)} for kind, first in kinds}
    found: InTrain = {"images": len(images[split]), "same": 0, "exact": 0, "near": 0, "rows": 0, "listed": []}
    for name in sorted(images[split]):
        for kind, first in kinds:
            other = there[kind].get(first.get(name, name))
            if other is not None:
                found[kind] += 1
                found["rows"] += images[split][name]
                found["listed"].append({"image": name, "train": other, "kind": kind})
                break
    del found["listed"][LISTED:]
    return found


def _over_folds(train: Sequence[Row], copies: Copies) -> int:
    """Return how many groups of copies have images in more than one fold."""
    folds: dict[str, set[int]] = defaultdict(set)
    for row in train if copies.near else ():
        group = copies.near.get(path_key(row["image_path"]))
        if group is not None and "fold" in row:
            folds[group].add(row["fold"])
    return sum(len(found) > 1 for found in folds.values())


_KINDS: dict[Nearness, str] = {"same": "same file", "exact": "same bytes", "near": "near copy"}


def _tell_in_train(split: str, of: InTrain, advice: str) -> str:
    kinds = [f"{words} {of[kind]:,}" for kind, words in _KINDS.items() if of[kind]]
    if not kinds:
        return ""
    shown = [
        entry["image"] + ("" if entry["kind"] == "same" else f" ({_KINDS[entry['kind']]}: {entry['train']})")
        for entry in of["listed"][:_EXAMPLES]
    ]
    number = sum(of[kind] for kind in _KINDS)
    return (
        f"{split.upper()} IMAGES IN TRAIN: {number:,} of {of['images']:,} ({', '.join(kinds)}), "
        f"such as {', '.join(shown)}{advice}"
    )


# Questions and options


def _answer(row: Row) -> str | None:
    """Return the text of a row's answer; None if it isn't known."""
    answer = row.get("answer")
    if answer is None or "choices" not in row:
        return answer
    text: str = row["choices"][LETTERS.index(answer)]
    return text


def _repeated_questions(splits: Splits, key_of: Mapping[str, str], copies: Copies) -> dict[str, RepeatedQuestions]:
    """Return the questions that are asked more than once about an image or its exact copies, by their answers."""

    def key(row: Row) -> tuple[str, str]:
        image = key_of[row["image_path"]]
        return copies.exact.get(image, image), comparable(row["question"])

    # Millions of keys would fill the memory, so only their hashes are kept. If two should fall together, the second
    # pass finds a question that was asked once, and drops it.
    numbers = [hash(key(row)) for _, row in _every(splits)]
    more = {number for number, count in Counter(numbers).items() if count > 1}
    asked: dict[tuple[str, str], list[tuple[str, Row]]] = defaultdict(list)
    for number, (split, row) in zip(numbers, _every(splits), strict=True):
        if number in more:
            asked[key(row)].append((split, row))
    kinds: dict[str, list[list[tuple[str, Row]]]] = {"same_answer": [], "other_answers": [], "unknown_answer": []}
    for group in asked.values():
        if len(group) > 1:
            known = {_plain(answer) for _, row in group if (answer := _answer(row)) is not None}
            kinds["other_answers" if len(known) > 1 else "same_answer" if known else "unknown_answer"].append(group)
    return {
        kind: {
            "questions": len(groups),
            "rows": sum(map(len, groups)),
            "listed": [
                {
                    "question": group[0][1]["question"],
                    "rows": [
                        {"split": split, "id": str(row["id"]), "image": row["image_path"], "answer": _answer(row)}
                        for split, row in group[:LISTED]
                    ],
                }
                for group in groups[: LISTED // 10]
            ],
        }
        for kind, groups in kinds.items()
    }


def _tell_repeated(of: RepeatedQuestions) -> str:
    if not of["questions"]:
        return ""
    shown = []
    for entry in of["listed"][:_EXAMPLES]:
        known = [(row["id"], row["answer"]) for row in entry["rows"] if row["answer"] is not None]
        one, answer = known[0]
        two, other = next((name, text) for name, text in known if _plain(text) != _plain(answer))
        shown.append(f"{one} ({answer[:30]}) and {two} ({other[:30]})")
    asked = plural(of["questions"], "question")
    return f"{asked} asked again about the same image, with another answer: {', '.join(shown)}"


@lru_cache(2**16)
def _plain(text: str) -> str:
    """Return the key under which two options are equal: case, width, marks at the ends and an article don't count."""
    key = comparable(text).strip(_MARKS)
    first, _, rest = key.partition(" ")
    return (rest.strip() if first in ARTICLES and rest.strip() else key) or comparable(text)


# Between two options of a row that are joined by NUL: marks and an article.
_BETWEEN = re.compile(rf"[{re.escape(_MARKS)}]*\0[{re.escape(_MARKS)}]*(?:(?:an?|the) +)?")


def _all_differ(choices: Sequence[str]) -> bool:
    """Return True only if no two options are equal after `_plain`, in a quarter of the time, as for most rows."""
    text = "\0".join(("", *choices, ""))
    if not text.isascii():
        return False
    keys = _BETWEEN.split(text.lower())[1:-1]
    return len(keys) == len(choices) == len(set(keys)) and all(keys)


def _equal_options(splits: Splits) -> EqualOptions:
    """Return the rows in which two options are equal after `_plain`."""
    number = right = 0
    listed: list[RowOfEqualOptions] = []
    for split, row in _every(splits):
        choices = row.get("choices", ())
        if _all_differ(choices):
            continue
        keys = [_plain(choice) for choice in choices]
        if len(set(keys)) == len(keys):
            continue
        counts = Counter(keys)
        letters = [letter for letter, key in zip(LETTERS, keys, strict=False) if counts[key] > 1]
        number += 1
        right += row.get("answer") in letters
        if len(listed) < LISTED:
            listed.append(
                {
                    "split": split,
                    "id": str(row["id"]),
                    "letters": letters,
                    "options": list(choices),
                    "answer": row.get("answer"),
                }
            )
    return {"rows": number, "right": right, "listed": listed}


# What can be guessed


def _answered(rows: Sequence[Row]) -> Iterator[tuple[Sequence[str], int]]:
    """Yield the options and the place of the right one, for each row in which both are known."""
    return ((row["choices"], LETTERS.index(row["answer"])) for row in rows if "choices" in row and "answer" in row)


def _positions(rows: Sequence[Row]) -> PositionCounts | None:
    """Return how often each position is right, and the one that is so far too often; None if no answer is known."""
    seen: Counter[tuple[int, int]] = Counter((len(choices), place) for choices, place in _answered(rows))
    if not seen:
        return None
    widest = max(width for width, _ in seen)
    counts, expected = [0] * widest, [0.0] * widest
    for (width, place), number in seen.items():
        counts[place] += number
        for position in range(width):
            expected[position] += number / width
    square = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    p = chi_squared_p(square, widest - 1)
    top = max(range(widest), key=lambda position: counts[position] / expected[position])
    dominates = p < _RARE and counts[top] >= _MORE_OFTEN * expected[top]
    return {
        "rows": sum(counts),
        "counts": dict(zip(LETTERS, counts, strict=False)),
        "expected": dict(zip(LETTERS, expected, strict=False)),
        "p": p,
        "dominant": LETTERS[top] if dominates else None,
    }


def chi_squared_p(square: float, degrees: int) -> float:
    """Return the probability of such a chi-squared or a larger one, by Wilson and Hilferty's cube root (1931)."""
    spread = 2 / (9 * degrees)
    return 0.5 * math.erfc(((square / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(2 * spread))


def _lengths(rows: Sequence[Row]) -> OptionLengths | None:
    """Return how often the longest option is right, against chance; None if no answer is known."""
    number = right_length = others_length = 0.0
    hits = chance = variance = 0.0
    for choices, place in _answered(rows):
        lengths = list(map(len, choices))
        longest = max(lengths)
        number += 1
        # Of options that are equally long one is guessed.
        hits += (lengths[place] == longest) / lengths.count(longest)
        chance += 1 / len(choices)
        variance += (1 - 1 / len(choices)) / len(choices)
        right_length += lengths[place]
        others_length += (sum(lengths) - lengths[place]) / (len(choices) - 1)
    if not number:
        return None
    # Ties make the variance smaller than that, never larger, so chance alone tells even more rarely.
    p = math.erfc(abs(hits - chance) / math.sqrt(2 * variance))
    return {
        "rows": int(number),
        "longest_is_right": hits / number,
        "chance": chance / number,
        "p": p,
        "characters_of_right": right_length / number,
        "characters_of_others": others_length / number,
        "tells": p < _RARE and abs(hits - chance) >= _LONGER * number,
    }


def _tell_guesses(positions: Mapping[str, PositionCounts], lengths: Mapping[str, OptionLengths]) -> list[str]:
    lines = []
    shares = [
        f"{letter} in {of['counts'][letter] / of['rows']:.0%} of {split} "
        f"(chance {of['expected'][letter] / of['rows']:.0%})"
        for split, of in positions.items()
        if (letter := of["dominant"])
    ]
    if shares:
        lines.append(f"one position is right too often: {', '.join(shares)}")
    shares = [
        f"{of['longest_is_right']:.0%} of {split} (chance {of['chance']:.0%})"
        for split, of in lengths.items()
        if of["tells"]
    ]
    if shares:
        lines.append(f"the longest option is right in {', '.join(shares)}: that can be guessed without the image")
    return lines


# Texts


def get_script(word: str) -> str:
    """Return the script of a word: a key of `SCRIPTS`, or `OTHER`."""
    if word.isascii() and word.isalpha():
        return "Latin"
    return next((name for name, letters in SCRIPTS.items() if letters.search(word)), OTHER)


def _scripts(splits: Splits, tokenizer: Tokenizer | None) -> TextsFound:
    """Return for each script its words and, with a tokenizer, what of them it doesn't know or cuts to characters."""
    step = -(-sum(map(len, splits.values())) // _MAX_TEXTS) or 1
    words: Counter[str] = Counter()
    for _, row in islice(_every(splits), 0, None, step):
        for text in (*all_wordings(row), *row.get("choices", ())):
            words.update(one_form(text).split())
    by_script: dict[str, list[str]] = defaultdict(list)
    for word in words:
        by_script[get_script(word)].append(word)
    described: dict[str, ScriptWords] = {}
    for name in (*SCRIPTS, OTHER):
        own = by_script.get(name)
        if own:
            number = sum(words[word] for word in own)
            described[name] = (
                _known(own, words, tokenizer, name, number) if tokenizer else {"words": number, "warns": False}
            )
    return {
        "tokenizer": tokenizer.path.name if tokenizer else None,
        "every_row": step == 1,
        "scripts": described,
    }


def _known(
    own: Sequence[str], counts: Mapping[str, int], tokenizer: Tokenizer, script: str, number: int
) -> ScriptWords:
    unknown = tokens = single = 0
    for word, ids in zip(own, tokenizer.encode_batch(own), strict=True):
        if UNK_ID in ids:
            unknown += counts[word]
            continue
        pieces = [piece.strip() for piece in tokenizer.pieces(ids)]
        tokens += counts[word] * len(pieces)
        single += counts[word] * sum(len(piece) == 1 for piece in pieces if len(word) > 1)
    much_cut = script in _BY_LETTER and single > _MUCH_CUT * tokens
    return {
        "words": number,
        "unknown_words": unknown,
        "tokens": tokens,
        "single_characters": single,
        "warns": number >= _FEW_WORDS and (unknown > _MUCH_UNKNOWN * number or much_cut),
    }


def _tell_unknown(texts: TextsFound) -> str:
    unknown, cut = [], []
    for script, of in texts["scripts"].items():
        words = f"of {of['words']:,} {script} words"
        if of["warns"] and of["unknown_words"] > _MUCH_UNKNOWN * of["words"]:
            unknown.append(f"{of['unknown_words'] / of['words']:.0%} {words}")
        elif of["warns"]:
            cut.append(f"{of['single_characters'] / of['tokens']:.0%} of the tokens {words}")
    if not unknown and not cut:
        return ""
    what = [f"has no tokens (<unk>) for {', '.join(unknown)}"] if unknown else []
    what += [f"makes single letters of {', '.join(cut)}"] if cut else []
    return (
        f"{texts['tokenizer']} {' and '.join(what)}: translate the texts to English, which the published weights were "
        "trained on, or train from scratch with a tokenizer of such texts (--train_tokenizer 8000)"
    )
