"""Checkpoints: reading, writing, checking, and going on from one."""
