"""Paired measurements that anyone can repeat: `python -m benchmarks.step`, `.evaluate`, `.data`, `.startup` and others.

They run as the command line does: with idle threads that spin until others want the cores.
"""

from beit3_vqa.runtime.spinning import watch_spinning

watch_spinning()
