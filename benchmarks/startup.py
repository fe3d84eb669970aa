"""How long a command line takes to answer before it computes anything."""

import statistics
import subprocess
import sys

from benchmarks.paired import arguments, paired, report

COMMANDS = {
    "beit3-vqa --help": ["-m", "beit3_vqa", "--help"],
    "run_beit3_finetuning.py --help": ["run_beit3_finetuning.py", "--help"],
    "import torch": ["-c", "import torch"],
    "python -c pass": ["-c", "pass"],
}


def main() -> None:
    """Run `python -m benchmarks.startup`, in the folder of the launcher."""
    options = arguments(__doc__ or "", rounds=7).parse_args()
    runs = {
        name: lambda command=command: subprocess.run([sys.executable, *command], capture_output=True, check=True)
        for name, command in COMMANDS.items()
    }
    seconds = paired(runs, options.rounds)
    rows = [{"command": name, "seconds": round(statistics.median(values), 3)} for name, values in seconds.items()]
    report("start-up", rows, options.output)


if __name__ == "__main__":
    main()
