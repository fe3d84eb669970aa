"""Rows of predictions in, numbers out, without a model.

Accuracies, intervals and calibration errors are in percent. Every function looks only at the predictions whose truth is
known and returns plain data for JSON.
"""
