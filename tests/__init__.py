"""Tests; idle threads sleep early in all of them and in what they start, since there is a process on every core."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # here, before a test file imports torch
