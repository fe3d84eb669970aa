"""`python -m beit3_vqa COMMAND`, the same as `beit3-vqa COMMAND`."""

import sys

from beit3_vqa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
