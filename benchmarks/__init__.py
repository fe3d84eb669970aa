"""Paired measurements that anyone can repeat: `python -m benchmarks.step`, `.evaluate`, `.data`, `.startup`."""
