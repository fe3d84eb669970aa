"""Scores of answering without the image: what a model must beat to have understood anything."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.tables import comparable
from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.types import Baseline


def count_answers(answers: Iterable[str]) -> Counter[str]:
    """Count how often each answer occurs, for `baselines`."""
    return Counter(map(comparable, answers))


def baselines(
    predictions: Sequence[Prediction], training_answers: Mapping[str, int] | None = None
) -> dict[str, Baseline]:
    """Return accuracies in percent of answering without the image; empty if no truth is known.

    Keys: `most_frequent_answer`, for the option (open-ended: the answer) that is right most often in `counted_in`;
    `most_frequent_position`, for the letter that is true most often here; `longest_option`, for the option with the
    most characters. Options that tie share the question. The last two are for multiple choice.

    Args:
        predictions: the questions.
        training_answers: how often each answer's text is right in training, from `count_answers`; None: the other
            questions of the split are counted.
    """
    known = [p for p in predictions if p.truth is not None]
    multiple_choice = [p for p in known if p.choices]
    if not known:
        return {}
    if len(multiple_choice) < len(known):
        return _of_open_ended(known, training_answers)
    own = Counter(truth for p in known for truth in _true_texts(p))
    counts = own if training_answers is None else training_answers
    most_frequent = []
    for p in known:
        # Counted with its own truth, a question would give away its answer.
        held_out = _true_texts(p) if training_answers is None else []
        most_frequent.append(
            _share(p, [counts.get(text, 0) - (text in held_out) for text in map(comparable, p.choices)])
        )
    position, times = min(Counter(p.truth for p in known).items(), key=lambda item: (-item[1], str(item[0])))
    return {
        "most_frequent_answer": {"accuracy": _percent(most_frequent), "counted_in": _source(training_answers)},
        "most_frequent_position": {"accuracy": 100.0 * times / len(known), "answer": position},
        "longest_option": {"accuracy": _percent([_share(p, [len(c.strip()) for c in p.choices]) for p in known])},
    }


def _of_open_ended(known: Sequence[Prediction], training_answers: Mapping[str, int] | None) -> dict[str, Baseline]:
    spelling: dict[str, str] = {}
    counts: Counter[str] = Counter()  # as answers are scored: all spellings of one together
    for text, count in (training_answers or Counter(p.truth or "" for p in known)).items():
        counts[answer_key(text)] += count
        spelling.setdefault(answer_key(text), text)
    answer = min(counts, key=lambda key: (-counts[key], key))
    accuracy = _percent([_score(p, answer) for p in known])
    source = _source(training_answers or None)
    return {"most_frequent_answer": {"accuracy": accuracy, "answer": spelling[answer], "counted_in": source}}


def _score(prediction: Prediction, key: str) -> float:
    """Return what the answer with a key scores as the answer to an open-ended question, in [0, 1]."""
    if prediction.answer_scores is None:
        return float(answer_key(prediction.truth or "") == key)
    return max((s for answer, s in prediction.answer_scores.items() if answer_key(answer) == key), default=0.0)


def _source(training_answers: Mapping[str, int] | None) -> str:
    return "the questions themselves" if training_answers is None else "the training answers"


def _true_texts(prediction: Prediction) -> list[str]:
    place = _place(prediction)
    return [] if place is None else [comparable(prediction.choices[place])]


def _place(prediction: Prediction) -> int | None:
    """Return the place of the true option; None if the truth is no letter of an option."""
    truth = prediction.truth or ""
    place = ord(truth) - ord("A") if len(truth) == 1 else -1
    return place if 0 <= place < len(prediction.choices) else None


def _share(prediction: Prediction, values: Sequence[int]) -> float:
    """Return the expected score of choosing the option with the highest value, or any of those that tie."""
    best = [place for place, value in enumerate(values) if value == max(values)]
    return (_place(prediction) in best) / len(best)


def _percent(scores: Sequence[float]) -> float:
    return 100.0 * sum(scores) / len(scores)
