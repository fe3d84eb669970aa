"""Rows of predictions in, numbers out, without a model.

Accuracies, intervals and calibration errors are in percent. Every function looks only at the predictions whose truth is
known and returns plain data for JSON.
"""

from beit3_vqa.data.question_words import QUESTION_WORDS, question_word
from beit3_vqa.metrics.accuracy import accuracy_metrics, confusion, positions
from beit3_vqa.metrics.baselines import baselines
from beit3_vqa.metrics.calibration import accuracy_at_coverage, calibration, fit_temperature, mean_nll, tempered
from beit3_vqa.metrics.intervals import accuracy_interval, mean_interval, wilson_interval
from beit3_vqa.metrics.summary import full_metrics, metrics_table

__all__ = [
    "QUESTION_WORDS",
    "accuracy_at_coverage",
    "accuracy_interval",
    "accuracy_metrics",
    "baselines",
    "calibration",
    "confusion",
    "fit_temperature",
    "full_metrics",
    "mean_interval",
    "mean_nll",
    "metrics_table",
    "positions",
    "question_word",
    "tempered",
    "wilson_interval",
]
