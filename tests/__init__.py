"""Tests; idle threads sleep early in all of them, since there is a process of tests on every core."""

from beit3_vqa.runtime.host import limit_spinning

limit_spinning()  # here, before a test file imports torch
