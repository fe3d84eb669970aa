#!/usr/bin/env python
"""Fine-tunes and evaluates BEiT-3: `python run_beit3_finetuning.py --help`."""

import sys

from beit3_vqa.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
