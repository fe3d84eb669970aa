"""The official BEiT-3 files: their addresses, and how one is fetched and checked.

Names, addresses and parameter counts are those of Microsoft's README (github.com/microsoft/unilm, beit3/README.md at
commit 684e630d). No address could be tried where this was written, so `download` trusts none of them: what comes goes
to `NAME.part`, is checked to be BEiT-3, and only then gets the name `NAME`.

    download = be the only writer of .part -> fetch, going on after failures -> check -> rename"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from beit3_vqa.data.tokenizer import MAX_MODEL, Tokenizer
from beit3_vqa.errors import InputError, nearest
from beit3_vqa.models.beit3.key_layout import VOCAB_ROWS, KeyLayout, check_key_layout, require_torch_zip
from beit3_vqa.runtime.files import file_sha256, flush_folder
from beit3_vqa.runtime.https import require_https, shown
from beit3_vqa.runtime.transfer import fetch

RELEASES = "https://github.com/addf400/files/releases/download/beit3/"  # addf400 answers for BEiT in Microsoft's issues
MAX_BYTES = 8_000_000_000


@dataclass(frozen=True)
class OfficialFile:
    """One file of the BEiT-3 release.

    Attributes:
        address: where Microsoft's README says it is.
        kind: "checkpoint" (torch's zip format) or "tokenizer" (SentencePiece).
        parameters: the published count, empty for the tokenizer. File sizes are not published.
        layout: the sizes that the checkpoint must have; None takes any.
        sha256: the published checksum, in hexadecimal digits; empty if there is none, which is so for all files today.
    """

    address: str
    kind: Literal["checkpoint", "tokenizer"]
    parameters: str = ""
    layout: KeyLayout | None = None
    sha256: str = ""


def _checkpoint(name: str, parameters: str) -> OfficialFile:
    width, layers = (768, 12) if "_base_" in name else (1024, 24)
    resolution = int(re.findall(r"patch16_(\d+)", name)[0])
    layout = KeyLayout(width, layers, (resolution // 16) ** 2, VOCAB_ROWS)
    return OfficialFile(RELEASES + name, "checkpoint", parameters, layout)


_PARAMETERS = {
    # Pretrained on images, text and pairs; itc: then on image-text contrast; indomain: then on pairs of COCO and VG.
    "beit3_base_patch16_224.pth": "276M",
    "beit3_large_patch16_224.pth": "746M",
    "beit3_base_itc_patch16_224.pth": "222M",
    "beit3_large_itc_patch16_224.pth": "674M",
    "beit3_base_indomain_patch16_224.pth": "276M",
    "beit3_large_indomain_patch16_224.pth": "746M",
    # Fine-tuned on VQAv2; vgqaaug: with Visual Genome's questions.
    "beit3_base_patch16_480_vqa.pth": "228M",
    "beit3_base_indomain_patch16_480_vqa.pth": "228M",
    "beit3_large_patch16_480_vqa.pth": "683M",
    "beit3_large_indomain_patch16_480_vqa.pth": "683M",
    "beit3_large_indomain_patch16_768_vgqaaug_vqa.pth": "684M",
}
OFFICIAL_WEIGHTS = {name: _checkpoint(name, parameters) for name, parameters in _PARAMETERS.items()}
OFFICIAL_WEIGHTS["beit3.spm"] = OfficialFile(RELEASES + "beit3.spm", "tokenizer")


def download(
    name: str,
    folder: str | Path = Path("checkpoints"),
    url: str | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
    say: Callable[[str], None] = print,
) -> Path:
    """Fetch one file to `folder/name` and check it; go on from `name.part` if an earlier try left one.

    Args:
        name: a name of `OFFICIAL_WEIGHTS` (".pth" may be left out); with `url`, any NAME.pth, .zip, .spm or .model.
        folder: where the file goes; made if missing.
        url: another address of the file: https, or http on this very machine.
        max_bytes: a larger file is refused before anything is written.
        attempts: failures in a row, without a byte gained, after which it gives up.
        pause: seconds before the second attempt; doubled each time, at most 30.
        timeout: seconds without an answer after which an attempt has failed.
        say: called with sentences about what happens.

    Returns:
        The path of the complete, checked file. A file that is already there is checked, and not fetched again.

    Raises:
        InputError: unknown name, refused or dead address, too large, no room, or not a BEiT-3 file. Nothing is then
            under the final name; what came is kept as `name.part` (to go on) or `name.part.rejected` (to look at).
    """
    name, official = _resolve(name, url)
    address = official.address
    require_https(address, local_allowed=True)
    target, part = Path(folder) / name, Path(folder) / f"{name}.part"
    try:
        if target.exists():
            say(f"{target} is already there ({_check_present(target, official)}): not fetched again.")
            return target
        say(f"Fetching {shown(address)} to {target}")
        limit = max_bytes if official.kind == "checkpoint" else min(max_bytes, MAX_MODEL)
        part.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(part):
            fetch(address, part, limit, attempts=attempts, pause=pause, timeout=timeout, say=say)
            found = _check_arrived(part, official)
            part.replace(target)
            flush_folder(target.parent)
    except OSError as error:  # the network's errors end in `fetch`: this one is the disk's
        raise InputError(f"{target} can't be written ({error}). What came so far is kept") from error
    say(f"{target} is complete ({found}).")
    return target


@contextmanager
def _sole_writer(part: Path) -> Iterator[None]:
    """Lock `part` for this process: two downloads that append to one file would mix their bytes."""
    with part.open("ab") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another download is writing {part}: wait for it, or stop it") from None
        except (ImportError, OSError):  # Windows, where an open file can't be renamed, or a file system without locks
            lock.close()
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
            if not part.exists():
                Path(f"{part}.json").unlink(missing_ok=True)


def _resolve(name: str, url: str | None) -> tuple[str, OfficialFile]:
    """Return the file's full name and its entry, with `url` as its address if one is given."""
    # A browser that recognises torch's zip format saves NAME.pth as NAME.zip; both mean the same file.
    for known in (name, f"{name}.pth", f"{name.removesuffix('.zip')}.pth"):
        if known in OFFICIAL_WEIGHTS:
            official = OFFICIAL_WEIGHTS[known]
            return known, replace(official, address=url) if url else official
    if url is None:
        names = "\n  ".join(OFFICIAL_WEIGHTS)
        raise InputError(f"No official file is called {name!r}.{nearest(name, OFFICIAL_WEIGHTS)} There are:\n  {names}")
    if not re.fullmatch(r"\w[\w.-]*\.(pth|zip|spm|model)", name):
        raise InputError(f"{name!r} must be a plain file name that ends in .pth, .zip, .spm or .model")
    return name, OfficialFile(url, "checkpoint" if name.endswith((".pth", ".zip")) else "tokenizer")


def _check_file(path: Path, official: OfficialFile) -> str:
    """Return what the file is, in words.

    Raises:
        InputError: it isn't what it should be.
    """
    if official.sha256 and file_sha256(path) != official.sha256:
        raise InputError(f"{path} isn't the official file, byte for byte: its SHA-256 should be {official.sha256}")
    if official.kind == "tokenizer":
        ids = Tokenizer(path).vocab_size
        if ids > VOCAB_ROWS:
            raise InputError(f"{path} has {ids:,} ids, and BEiT-3 can embed {VOCAB_ROWS:,}")
        return f"SentencePiece, {ids:,} ids"
    layout = official.layout
    found = check_key_layout(path, layout.vocab_rows if layout else None)
    if layout and found != layout:
        raise InputError(f"{path} is a BEiT-3 checkpoint of other sizes: {found}, expected {layout}")
    return (
        f"BEiT-3, width {found.width}, {found.layers} layers, {found.patches} patches, {found.vocab_rows:,} token rows"
    )


def _check_present(target: Path, official: OfficialFile) -> str:
    """Check a file that was there before: as `_check_file`, but never rename what isn't ours."""
    try:
        return _check_file(target, official)
    except InputError as error:
        raise InputError(f"{error}\nThis file was there before: move it away to fetch it anew") from error


def _check_arrived(part: Path, official: OfficialFile) -> str:
    """Check every byte of a file that was fetched; rename what fails, so that no later try goes on from it."""
    try:
        if official.kind == "checkpoint":
            require_torch_zip(part, every_byte=True)
        return _check_file(part, official)
    except InputError as error:
        rejected = part.with_name(f"{part.name}.rejected")
        part.replace(rejected)
        raise InputError(f"{error}\nIt came from {shown(official.address)} and is kept as {rejected}") from error
