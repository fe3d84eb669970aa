"""Predictions against the answers in files of others, with their own rules: SCPC's CSV, Visual7W, VQAv2."""
