"""The official BEiT-3 files: where they are, how one is fetched, how it is known to be whole and the right one.

Names, addresses and parameter counts are those of Microsoft's README (github.com/microsoft/unilm, beit3/README.md at
commit 684e630d). No address could be tried where this was written, so `download` trusts none of them: what comes goes
to `NAME.part`, is checked to be BEiT-3, and only then gets the name `NAME`.

    download = be the only writer of .part -> transfer, again where it broke -> check -> rename
"""

import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from beit3_vqa.errors import InputError, nearest
from beit3_vqa.models.key_layout import VOCAB_ROWS, KeyLayout, check_key_layout, check_tokenizer, require_torch_zip
from beit3_vqa.models.transfer import Transfer, fetch, opener, require_safe, shown, sole_writer, sync_folder

RELEASES = "https://github.com/addf400/files/releases/download/beit3/"  # addf400 answers for BEiT in Microsoft's issues
FORMER_HOST = "https://conversationhub.blob.core.windows.net/beit-share-public/beit3/"  # closed to the public in 2023
MAX_BYTES = 8_000_000_000
MAX_TOKENIZER_BYTES = 100_000_000


@dataclass(frozen=True)
class OfficialFile:
    """One file of the BEiT-3 release.

    Attributes:
        address: where Microsoft's README says it is.
        former_address: where the README said it was before; kept because other projects still quote it.
        kind: "checkpoint" (torch's zip format) or "tokenizer" (SentencePiece).
        about: what it is, in one line.
        parameters: the published count, empty for the tokenizer. File sizes are not published.
        layout: the sizes that the checkpoint must have.
    """

    address: str
    former_address: str
    kind: Literal["checkpoint", "tokenizer"]
    about: str
    parameters: str = ""
    layout: KeyLayout | None = None


def _checkpoint(name: str, former_folder: str, parameters: str, about: str) -> OfficialFile:
    width, layers = (768, 12) if "_base_" in name else (1024, 24)
    resolution = int(re.findall(r"patch16_(\d+)", name)[0])
    layout = KeyLayout(width, layers, (resolution // 16) ** 2, VOCAB_ROWS)
    return OfficialFile(
        RELEASES + name, f"{FORMER_HOST}{former_folder}/{name}", "checkpoint", about, parameters, layout
    )


_CHECKPOINTS = (
    ("beit3_base_patch16_224.pth", "pretraining", "276M", "base, pretrained on images, text and pairs"),
    ("beit3_large_patch16_224.pth", "pretraining", "746M", "large, pretrained on images, text and pairs"),
    ("beit3_base_itc_patch16_224.pth", "pretraining", "222M", "base, then image-text contrast: for retrieval"),
    ("beit3_large_itc_patch16_224.pth", "pretraining", "674M", "large, then image-text contrast: for retrieval"),
    ("beit3_base_indomain_patch16_224.pth", "pretraining", "276M", "base, then COCO and VG pairs: for VQA, NLVR2"),
    ("beit3_large_indomain_patch16_224.pth", "pretraining", "746M", "large, then COCO and VG pairs: for VQA, NLVR2"),
    ("beit3_base_patch16_480_vqa.pth", "vqa", "228M", "base on VQAv2, test-dev 77.65"),
    ("beit3_base_indomain_patch16_480_vqa.pth", "vqa", "228M", "base indomain on VQAv2, test-dev 78.46"),
    ("beit3_large_patch16_480_vqa.pth", "vqa", "683M", "large on VQAv2, test-dev 81.85"),
    ("beit3_large_indomain_patch16_480_vqa.pth", "vqa", "683M", "large indomain on VQAv2, test-dev 82.53"),
    ("beit3_large_indomain_patch16_768_vgqaaug_vqa.pth", "vqa", "684M", "the same at 768 px with VGQA, 82.97"),
)
OFFICIAL_WEIGHTS: dict[str, OfficialFile] = {row[0]: _checkpoint(*row) for row in _CHECKPOINTS}
OFFICIAL_WEIGHTS["beit3.spm"] = OfficialFile(
    RELEASES + "beit3.spm", f"{FORMER_HOST}sentencepiece/beit3.spm", "tokenizer", "the tokenizer of all of them"
)


def download(
    name: str,
    folder: str | Path = Path("checkpoints"),
    url: str | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
    using: urllib.request.OpenerDirector | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Fetch one file to `folder/name`, going on from `name.part` where an earlier try stopped, and check it.

    Args:
        name: a name of `OFFICIAL_WEIGHTS` (".pth" may be left out); with `url`, any NAME.pth, .zip, .spm or .model.
        folder: where the file goes; made if missing.
        url: another address of the file: https, or http on this very machine.
        max_bytes: a larger file is refused before anything is written.
        attempts: failures in a row, without a byte gained, after which it gives up.
        pause: seconds before the second attempt; doubled each time, at most 30.
        timeout: seconds without an answer after which an attempt has failed.
        using: opens requests in place of urllib's usual one (which refuses redirects that leave https).
        say: is told in plain sentences what happens.

    Returns:
        The path of the complete, checked file. A file that is already there is checked, and not fetched again.

    Raises:
        InputError: unknown name, refused or dead address, too large, no room, or not a BEiT-3 file. Nothing is then
            under the final name; what came is kept as `name.part` (to go on) or `name.part.rejected` (to look at).
    """
    name, kind, layout, address = _resolve(name, url)
    require_safe(address, local_allowed=True)
    target, part = Path(folder) / name, Path(folder) / f"{name}.part"
    try:
        if target.exists():
            say(f"{target} is already there ({_check_present(target, kind, layout)}): not fetched again.")
            return target
        say(f"Fetching {shown(address)} to {target}")
        limit = max_bytes if kind == "checkpoint" else min(max_bytes, MAX_TOKENIZER_BYTES)
        part.parent.mkdir(parents=True, exist_ok=True)
        with sole_writer(part):
            fetch(Transfer(using or opener(address), address, part, target, limit, timeout), attempts, pause, say)
            found = _check_arrived(part, kind, layout, address)
            part.replace(target)
            sync_folder(target.parent)
    except OSError as error:  # the network's errors end in Transfer: this one is the disk's
        raise InputError(f"{target} can't be written ({error}). What came so far is kept") from error
    say(f"{target} is complete ({found}).")
    return target


def _resolve(name: str, url: str | None) -> tuple[str, str, KeyLayout | None, str]:
    """The file's name, kind, expected layout and address."""
    # A browser that recognises torch's zip format saves NAME.pth as NAME.zip; both mean the same file.
    for known in (name, f"{name}.pth", f"{name.removesuffix('.zip')}.pth"):
        if known in OFFICIAL_WEIGHTS:
            official = OFFICIAL_WEIGHTS[known]
            return known, official.kind, official.layout, url or official.address
    if url is None:
        names = "\n  ".join(OFFICIAL_WEIGHTS)
        raise InputError(f"No official file is called {name!r}.{nearest(name, OFFICIAL_WEIGHTS)} There are:\n  {names}")
    if not re.fullmatch(r"\w[\w.-]*\.(pth|zip|spm|model)", name):
        raise InputError(f"{name!r} must be a plain file name that ends in .pth, .zip, .spm or .model")
    return name, "checkpoint" if name.endswith((".pth", ".zip")) else "tokenizer", None, url


def _check_file(path: Path, kind: str, layout: KeyLayout | None) -> str:
    """What the file is, in words."""
    if kind == "tokenizer":
        return f"SentencePiece, {check_tokenizer(path):,} pieces"
    found = check_key_layout(path, layout.vocab_rows if layout else None)
    if layout and found != layout:
        raise InputError(f"{path} is a BEiT-3 checkpoint of other sizes: {found}, expected {layout}")
    return (
        f"BEiT-3, width {found.width}, {found.layers} layers, {found.patches} patches, {found.vocab_rows:,} token rows"
    )


def _check_present(target: Path, kind: str, layout: KeyLayout | None) -> str:
    try:
        return _check_file(target, kind, layout)
    except InputError as error:
        raise InputError(f"{error}\nThis file was there before: move it away to fetch it anew") from error


def _check_arrived(part: Path, kind: str, layout: KeyLayout | None, address: str) -> str:
    """As `_check_file`, every byte; what fails is set aside, so that nobody goes on from it."""
    try:
        if kind == "checkpoint":
            require_torch_zip(part, every_byte=True)
        return _check_file(part, kind, layout)
    except InputError as error:
        rejected = part.with_name(f"{part.name}.rejected")
        part.replace(rejected)
        raise InputError(f"{error}\nIt came from {shown(address)} and is kept as {rejected}") from error
