"""The official BEiT-3 files: where they are, how one is fetched, how it is known to be whole and the right one.

Names, addresses and parameter counts are those of Microsoft's README (github.com/microsoft/unilm, beit3/README.md at
commit 684e630d). No address could be tried where this was written, so `download` trusts none of them: what comes goes
to `NAME.part`, is checked to be BEiT-3, and only then gets the name `NAME`.

    download = be the only writer of .part -> transfer, again where it broke -> check -> rename"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from beit3_vqa.errors import InputError, nearest

# Fetching a file over https: resumed where it broke, never half-written under its name.

CHUNK_BYTES = 1 << 18


# Which addresses are allowed


def require_safe(address: str, local_allowed: bool) -> None:
    """Refuse everything but https; http is allowed to this machine itself, where nothing travels over a network."""
    safe = False
    with contextlib.suppress(ValueError):  # no such host or port
        parts = urlsplit(address)
        well_formed = bool(re.fullmatch("[!-~]+", address) and parts.hostname and parts.port != 0)
        safe = well_formed and (parts.scheme == "https" or (local_allowed and _is_local(address)))
    if not safe:
        raise InputError(f"{shown(address)!r} is refused: files are fetched over https only. Give an https address")


def _is_local(address: str) -> bool:
    parts = urlsplit(address)
    with contextlib.suppress(ValueError):
        return parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
    return parts.scheme == "http" and parts.hostname == "localhost"


def shown(address: str) -> str:
    """The address without user and query, which may hold somebody's key."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", address)[0])


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, local_allowed: bool) -> None:
        self.local_allowed = local_allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        require_safe(newurl, self.local_allowed)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(address: str) -> urllib.request.OpenerDirector:
    """urllib's opener, less redirects that leave https and, to this machine, proxies."""
    local = _is_local(address)
    proxies = [urllib.request.ProxyHandler({})] if local else []  # a proxy would take a local request elsewhere
    return urllib.request.build_opener(_SafeRedirects(local), *proxies)


# The transfer


@dataclass(frozen=True)
class _Progress:
    """What `.part` holds the beginning of, kept beside it in `.part.json`."""

    address: str
    total: int
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a weak ETag doesn't promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    @classmethod
    def read(cls, part: Path) -> "_Progress | None":
        try:
            return cls(**json.loads(Path(f"{part}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # an unknown beginning is fetched again

    def write(self, part: Path) -> None:
        temporary = Path(f"{part}.json.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        temporary.replace(f"{part}.json")


class _BrokenTransferError(Exception):
    """The transfer failed in a way that another attempt may mend."""


_NETWORK_ERRORS = (OSError, http.client.HTTPException)  # URLError, TimeoutError and ConnectionError are OSErrors


def fetch(transfer: "Transfer", attempts: int, pause: float, say: Callable[[str], None]) -> None:
    """Attempts a transfer until it is complete; InputError after `attempts` in a row that gained nothing."""
    failures, furthest = 0, transfer.part.stat().st_size
    while reason := transfer.attempt():
        size = transfer.part.stat().st_size
        failures = 1 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures >= attempts:
            kept = f"{_bytes(size)} are kept in {transfer.part}: run the same command again to go on from there"
            raise InputError(
                f"{shown(transfer.address)}: {reason}, and {failures} tries in a row brought nothing more. "
                + (kept if size else "Try again later, or give another url")
            )
        wait = min(pause * 2 ** (failures - 1), 30)
        say(f"{reason}; trying again in {wait:g} s.")
        time.sleep(wait)


@dataclass(frozen=True)
class Transfer:
    """Brings `part` to its full length, one request an attempt."""

    opener: urllib.request.OpenerDirector
    address: str
    part: Path
    target: Path
    limit: int
    timeout: float

    def attempt(self) -> str | None:
        """None when `part` is complete, else why it isn't and another attempt may help."""
        try:
            self._request()
        except _BrokenTransferError as broken:
            return str(broken)
        return None

    def _request(self) -> None:
        known, offset = _Progress.read(self.part), self.part.stat().st_size
        if known and not (known.address == shown(self.address) and known.validator and offset <= known.total):
            known = None
        if known and offset == known.total:
            return
        headers = {"User-Agent": "beit3_vqa", "Accept-Encoding": "identity"}
        if known and offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": str(known.validator)}
        with self._open(urllib.request.Request(self.address, headers=headers)) as response:
            require_safe(response.geturl(), local_allowed=_is_local(self.address))
            if response.status == 206 and known and offset:
                self._require_continuation(response.headers, offset, known)
                self._receive(response, offset, known.total)
            elif response.status == 200:  # the first request, or a server that ignores Range, or another file by now
                self._receive(response, 0, self._start_over(response.headers))
            else:
                raise InputError(f"{shown(self.address)} answered HTTP {response.status}, which is no file")

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            return self.opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                os.truncate(self.part, 0)
                raise _BrokenTransferError("the server no longer has the rest of this file, starting over") from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _BrokenTransferError(f"the server answered HTTP {error.code}") from error
            if error.code < 400:
                raise InputError(
                    f"{shown(self.address)}: it redirects in a circle or away from https: refused"
                ) from error
            raise InputError(
                f"{shown(self.address)} answered HTTP {error.code} ({error.reason}): the file may have moved. "
                f"checkpoints/README.md says where else to look; fetch it from there with another url, or put it at "
                f"{self.target} yourself"
            ) from error
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(f"{shown(self.address)}: its certificate can't be trusted ({reason})") from error
            raise _BrokenTransferError(f"no connection ({reason})") from error

    def _require_continuation(self, headers: http.client.HTTPMessage, offset: int, known: _Progress) -> None:
        """A 206 must go on where `part` ends, in the very file that `part` began: some servers ignore If-Range."""
        span = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})", headers.get("Content-Range", "").strip())
        same_place = span and (int(span[1]), int(span[2])) == (offset, known.total)
        version = headers.get("ETag", known.etag), headers.get("Last-Modified", known.last_modified)
        if not same_place or version != (known.etag, known.last_modified):
            os.truncate(self.part, 0)
            raise _BrokenTransferError("the file has changed on the server, starting over")

    def _start_over(self, headers: http.client.HTTPMessage) -> int:
        """Empty `part`, note what it will hold, return its full length in bytes."""
        length = headers.get("Content-Length", "").strip()
        if not re.fullmatch("[0-9]{1,15}", length):
            raise InputError(
                f"{shown(self.address)} doesn't say how long the file is, so a broken transfer could not be told "
                f"from a whole one. Fetch it by hand and put it at {self.target}"
            )
        total = int(length)
        if total > self.limit:
            raise InputError(f"{shown(self.address)} has {_bytes(total)}, more than the {_bytes(self.limit)} allowed")
        # In this order: killed in between, an empty part is never taken for the beginning of something else.
        os.truncate(self.part, 0)
        free = shutil.disk_usage(self.part.parent).free
        if total > free:
            raise InputError(f"{self.part.parent} has {_bytes(free)} free, {self.target.name} needs {_bytes(total)}")
        _Progress(shown(self.address), total, headers.get("ETag"), headers.get("Last-Modified")).write(self.part)
        return total

    def _receive(self, response: http.client.HTTPResponse, offset: int, total: int) -> None:
        from tqdm import tqdm

        bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=self.target.name, disable=None)
        with bar, self.part.open("ab") as file:
            while offset < total:
                try:
                    chunk = response.read(min(CHUNK_BYTES, total - offset))
                except _NETWORK_ERRORS as error:
                    raise _BrokenTransferError(f"the connection broke after {_bytes(offset)} ({error})") from error
                if not chunk:
                    raise _BrokenTransferError(f"the connection ended after {_bytes(offset)} of {_bytes(total)}")
                file.write(chunk)
                offset += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def sole_writer(part: Path) -> Iterator[None]:
    """Hold `part` for this process: two downloads that append to one file would mix their bytes."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None  # type: ignore[assignment]
    with contextlib.ExitStack() as stack:
        held = False
        while not held:
            handle = stack.enter_context(part.open("ab"))
            if fcntl:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(f"Another download is writing {part}: wait for it, or stop it") from None
                except OSError:
                    pass  # a file system without locks
            else:
                handle.close()  # an open file can't be renamed there
            # Whoever held the lock may have given the file we opened its final name: then that one isn't ours.
            with contextlib.suppress(FileNotFoundError):
                held = not fcntl or os.path.samestat(os.fstat(handle.fileno()), part.stat())
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
            if not part.exists():
                Path(f"{part}.json").unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts a rename on disk."""
    with contextlib.suppress(OSError):  # Windows can't open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} bytes"


# Is this file a BEiT-3 checkpoint, or a tokenizer? Told from keys and shapes, without running what it brings.

VOCAB_ROWS = 64_010


class KeyLayout(NamedTuple):
    """The sizes that a checkpoint's tensors have: width D, layers, image patches, rows of the token embedding."""

    width: int
    layers: int
    patches: int
    vocab_rows: int


def check_key_layout(path: str | Path, vocab_rows: int | None = VOCAB_ROWS) -> KeyLayout:
    """Read a checkpoint's keys and shapes (not its weights: the file is mapped) and make sure that it is BEiT-3.

    Args:
        path: a file written by torch.save since torch 1.6, holding `{"model": weights}`, `{"module": weights}` or the
            weights themselves. It is read as plain data; code in it does not run.
        vocab_rows: rows that the token embedding must have; None takes any.

    Returns:
        Width, layers, image patches and token rows.

    Raises:
        InputError: the file is missing, is something else, or lacks keys; the message names them.
    """
    import torch

    path = Path(path)
    require_torch_zip(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a stranger's pickle makes torch raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{path} can't be read as a checkpoint of plain data ({reason})") from error
    weights = checkpoint
    if isinstance(checkpoint, dict):
        weights = next((checkpoint[key] for key in ("model", "module") if key in checkpoint), checkpoint)
    if not isinstance(weights, dict):
        raise InputError(f"{path} holds a {type(weights).__name__}, not named weights: it isn't a BEiT-3 checkpoint")
    shapes = {str(key): tuple(value.shape) for key, value in weights.items() if isinstance(value, torch.Tensor)}
    return _layout_of(shapes, path, vocab_rows)


def _layout_of(shapes: dict[str, tuple[int, ...]], path: Path, vocab_rows: int | None) -> KeyLayout:
    token_table = shapes.get("beit3.text_embed.weight", ())
    if len(token_table) != 2:
        keys = ", ".join(list(shapes)[:3]) or "no tensors"
        raise InputError(f"{path} isn't a BEiT-3 checkpoint: it has no beit3.text_embed.weight, but {keys}")
    rows, width = token_table
    numbers = [re.match(r"beit3\.encoder\.layers\.([0-9]{1,4})\.", key) for key in shapes]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=0)
    required: dict[str, tuple[int | None, ...]] = {  # None: any size
        "beit3.text_embed.weight": (vocab_rows, width),
        "beit3.vision_embed.proj.weight": (width, 3, None, None),
        "beit3.encoder.embed_positions.A.weight": (None, width),
        "beit3.encoder.embed_positions.B.weight": (None, width),
    }
    for layer in range(layers):
        for way in "AB":
            required[f"beit3.encoder.layers.{layer}.self_attn.q_proj.{way}.weight"] = (width, width)
            required[f"beit3.encoder.layers.{layer}.ffn.{way}.fc1.weight"] = (None, width)
    problems = []
    for key, sizes in required.items():
        shape = shapes.get(key, ())
        if len(shape) != len(sizes) or any(size not in (None, n) for size, n in zip(sizes, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            problems.append(f"{key}: {list(shape) or 'missing'}, expected [{wanted}]")
    patches = shapes.get("beit3.encoder.embed_positions.A.weight", (0,))[0] - 3
    if patches < 1 and not problems:
        problems.append(f"beit3.encoder.embed_positions.A.weight: {patches + 3} rows, expected patches + 3")
    if problems:
        raise InputError.of_problems(f"{path} isn't a usable BEiT-3 checkpoint:", problems)
    return KeyLayout(width, layers, patches, rows)


def require_torch_zip(path: Path, every_byte: bool = False) -> None:
    """Tell a web page, a damaged file and a zip bomb from torch's format: a zip whose entries are all stored as is."""
    if not path.is_file():
        raise InputError(f"{path} isn't a file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            stored = stored and sum(entry.file_size for entry in entries) <= path.stat().st_size
            damaged = archive.testzip() if stored and every_byte else None
    except Exception as error:  # a broken directory makes zipfile raise nearly anything
        with path.open("rb") as file:
            page = file.read(100).lstrip().startswith(b"<")
        what = "is a web page or XML" if page else "is damaged or not in torch's zip format"
        raise InputError(f"{path} {what}: it isn't a BEiT-3 checkpoint") from error
    if not stored:
        raise InputError(f"{path} is a zip archive, but not one that torch.save wrote")
    if damaged:
        raise InputError(f"{path} is damaged: the check sum of {damaged} in it is wrong. Fetch it again")


def check_tokenizer(path: Path) -> int:
    """Pieces of a SentencePiece model; InputError where the file is none, or has too many."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.Load(str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} isn't a SentencePiece model") from error
    pieces = int(processor.GetPieceSize())
    if not 0 < pieces <= VOCAB_ROWS - 2:  # XLM-R's numbering adds <pad> and <mask>
        raise InputError(f"{path} has {pieces} pieces; with <pad> and <mask> at most {VOCAB_ROWS} ids can be embedded")
    return pieces


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
