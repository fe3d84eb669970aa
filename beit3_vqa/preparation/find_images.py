"""Find the image that a table means, however its name is written."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from beit3_vqa.data.file_kinds import IMAGE_ENDINGS
from beit3_vqa.runtime.files import is_file, one_form

_ENDINGS_OF_IDS = (".jpg", ".jpeg", ".png")
MAX_FILES = 20_000_000
# Folders in which a split's images may be, best first. Validation images are often a part of the training images. Test
# images never are, and their numbers start anew, so that another folder's image of that name would be the wrong one.
FOLDERS = {"train": ("", "train"), "val": ("", "val", "train"), "test": ("", "test")}


class ImageFinder:
    """Finds images in a folder by names as people write them, and counts what differed.

    A name may lack its ending or its folder (`train`, `val`, `test`, or the only one of the root), be in another case
    or Unicode form, have Windows' backslashes, or be an absolute path inside the root. Names that are exact are never
    looked up.

    Args:
        root: the image root.
        by_id: whether a name is an image's id: the folder of the split comes before the root then, and of several
            endings the first of `_ENDINGS_OF_IDS` is meant.
        split_known: False: the split is a guess, so that a name that fits in another split's folder is a problem.
    """

    def __init__(self, root: Path, *, by_id: bool = False, split_known: bool = True):
        self.root = root
        self.by_id = by_id
        self.split_known = split_known
        self.counts: Counter[str] = Counter()
        self._found: dict[tuple[str, str], tuple[str, str, str]] = {}

    def find(self, name: str, split: str) -> tuple[str, str]:
        """Return the path of an image relative to the root, and what is wrong with its name (empty: nothing).

        A name that nothing fits is returned as it is; whoever opens it says that it is missing.
        """
        if (name, split) not in self._found:
            self._found[name, split] = self._find(name.strip(), split)
        path, problem, how = self._found[name, split]
        if how:
            self.counts[how] += 1
        return path, problem

    def _find(self, name: str, split: str) -> tuple[str, str, str]:
        """Return path, problem, and how the name differs."""
        how = ""
        in_folder = not self.by_id or "/" in name
        if in_folder and is_file(self.root / name) and not Path(name).is_absolute():
            return name, "", ""
        if "\\" in name:
            name, how = name.replace("\\", "/"), "backslashes"
        if Path(name).is_absolute():
            inside = os.path.relpath(name, self.root.absolute())
            if inside.startswith(".."):
                return name, "", ""  # refused, with the reason, where images are read
            name, how = Path(inside).as_posix(), "absolute paths"
        folders = self._folders(name, split)
        found = next((there for folder in folders if (there := self._find_in(folder, name, how))), None)
        if not self.split_known and "/" not in name and (found is None or "/" in found[0]):
            elsewhere = [there[0] for folder in FOLDERS if (there := self._find_in(folder, name, how))]
            if elsewhere and (found is None or elsewhere != [found[0]]):
                shown = " or ".join(map(repr, elsewhere))
                problem = f"image {name!r} may be {shown}: write the folder too, or give it as the image root"
                return name, problem, ""
        return found or (name, "", "")

    def _find_in(self, folder: str, name: str, how: str) -> tuple[str, str, str] | None:
        """Return what `_find` does for an image in a folder; None if it isn't there."""
        wanted = f"{folder}/{name}" if folder else name
        if is_file(self.root / wanted):
            return wanted, "", how or f"in the folder {folder}" * bool(folder)
        for key, what in ((_key(wanted), "another case or Unicode form"), (_key(wanted) + ".", "no ending")):
            found = self._files.get(key, [])
            if self.by_id and len(found) > 1:
                found = [f for end in _ENDINGS_OF_IDS for f in found if f.lower().endswith(end)][:1] or found
            if len(found) > 1:
                shown = " or ".join(repr(path) for path in found[:3])
                return wanted, f"image {name!r} may be {shown}: rename one, or write the whole name", ""
            if found:
                return found[0], "", how or what
        return None

    def _folders(self, name: str, split: str) -> tuple[str, ...]:
        inside = (self._only_folder,) if self._only_folder else ()
        if "/" in name:
            return ("", *inside)
        root, *others = FOLDERS[split]
        return (*others, root, *inside) if self.by_id else (root, *others, *inside)

    @cached_property
    def _only_folder(self) -> str:
        """Return the folder that is alone in the root, as in an archive of a folder; empty if there is more."""
        try:
            entries = [entry for entry in os.scandir(self.root) if entry.name[0] != "." and entry.name != "__MACOSX"]
        except OSError:
            return ""
        return entries[0].name if len(entries) == 1 and entries[0].is_dir() else ""

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """Return the images below the root under their keys: with their ending, and with only a dot in its place."""
        by_key: dict[str, list[str]] = {}
        for number, path in enumerate(self._walk()):
            if number == MAX_FILES:
                break
            key = _key(path)
            stem, dot, ending = key.rpartition(".")
            if dot + ending in IMAGE_ENDINGS:
                by_key.setdefault(key, []).append(path)
                by_key.setdefault(f"{stem}.", []).append(path)
        return by_key

    def _walk(self) -> Iterator[str]:
        """Yield the path of every file below the root; a folder that links lead to again is passed over."""
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(self.root, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            below = Path(folder).relative_to(self.root).as_posix()
            yield from (name if below == "." else f"{below}/{name}" for name in sorted(names))


def _key(name: str) -> str:
    return one_form(name).casefold()
