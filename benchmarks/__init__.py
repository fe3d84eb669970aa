"""Paired measurements that anyone can repeat: `python -m benchmarks.step`, `.evaluate`, `.data`, `.startup`.

They run as the command line does: with idle threads that sleep early.
"""

from beit3_vqa.runtime.host import limit_spinning

limit_spinning()
