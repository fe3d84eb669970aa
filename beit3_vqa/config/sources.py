"""The sources of a run: the folders of `--data_path`, their proportions, and the one that validates."""

import math
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.config.options import DataConfig
from beit3_vqa.errors import InputError, plural


@dataclass(frozen=True)
class Sources:
    """The prepared folders of a run, in order.

    Attributes:
        folders: as they were given; empty if none was.
        image_roots: one for each folder; empty text stands for the one in its dataset.json.
        shares: of each folder in an epoch, to be compared with each other; empty: each row of all folders comes once.
        main: number of the folder that is validated on, and whose files count if only one can.
    """

    folders: tuple[str, ...]
    image_roots: tuple[str, ...]
    shares: tuple[float, ...]
    main: int

    @property
    def folder(self) -> str:
        """Return the folder that is validated on; empty if none was given."""
        return self.folders[self.main] if self.folders else ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return a name for each folder: the last part of its path, or if another's is the same, the whole."""
        short = [Path(folder).name for folder in self.folders]
        if len(set(short)) < len(short) or not all(short):
            return self.folders
        return tuple(short)

    @property
    def trained(self) -> tuple[int, ...]:
        """Return the numbers of the folders that are trained on: all but those whose share is 0."""
        return tuple(n for n in range(len(self.folders)) if not self.shares or self.shares[n])

    @property
    def once(self) -> int:
        """Return the number of the folder that an epoch shows once: the main one, or the last that is trained on."""
        return self.main if self.main in self.trained else self.trained[-1]

    @classmethod
    def of(cls, options: DataConfig) -> "Sources":
        """Return the sources that the options name; InputError if they contradict each other."""
        folders, roots = _as_tuple(options.data_path), _as_tuple(options.image_root)
        if not folders:  # whoever needs one says so
            return cls((), (), (), 0)
        if len(roots) not in (0, 1, len(folders)):
            raise InputError(
                f"--image_root: has {plural(len(roots), 'folder')} for {plural(len(folders), 'folder')} of "
                "--data_path; give one for all, one for each in their order, or none."
            )
        known: dict[Path, str] = {}
        for folder in folders if len(folders) > 1 else ():
            place = _resolve(folder)
            if place in known:
                raise InputError(f"--data_path: {known[place]} and {folder} are the same folder; give it once.")
            known[place] = folder
        roots = roots * len(folders) if len(roots) == 1 else roots or ("",) * len(folders)
        return cls(folders, roots, _read_shares(options.mix, folders), _find_main(options.val_from, folders))


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    return value


def _resolve(path: str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError):  # no path of a file system; whoever opens it says so
        return Path(path)


def _read_shares(mix: str, folders: tuple[str, ...]) -> tuple[float, ...]:
    """Return the numbers of `--mix`; empty if there are none to compare."""
    if not mix:
        return ()
    try:
        shares = tuple(float(part) for part in mix.split(","))
    except ValueError:
        shares = (math.nan,)
    if not all(0 <= share < math.inf for share in shares) or not 0 < sum(shares) < math.inf:
        raise InputError(
            f"--mix {mix}: give a number from 0 up for each folder of --data_path, separated by commas and not all 0, "
            "such as 1,2,0.5."
        )
    if len(shares) != len(folders):
        raise InputError(
            f"--mix {mix}: has {plural(len(shares), 'number')} for {plural(len(folders), 'folder')} of --data_path; "
            "give one for each."
        )
    return shares if len(shares) > 1 else ()


def _find_main(val_from: str, folders: tuple[str, ...]) -> int:
    """Return the number, from 0, of the folder that `--val_from` names; by default the last."""
    if not val_from:
        return len(folders) - 1
    for number, folder in enumerate(folders):
        if val_from == folder or _resolve(val_from) == _resolve(folder):
            return number
    if val_from.isdecimal() and 1 <= int(val_from) <= len(folders):
        return int(val_from) - 1
    raise InputError(
        f"--val_from {val_from}: give one of the folders of --data_path ({', '.join(folders)}), or "
        f"its number, 1 to {len(folders)}."
    )
