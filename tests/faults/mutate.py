"""Damaged and hostile copies of a good file, each a function of the random generator that is given."""

import copy
import io
import json
import random
import zipfile
import zlib
from typing import Any

TOKENS: list[bytes] = [
    b"\0", b'"', b'""', b"'", b"\\", b"\\u0000", b"\\ud800", b"\n", b"\r", b"\r\n", b",", b";", b"\t", b"{", b"}", b"[",
    b"]", b":", b"[" * 4000, b'{"a":' * 2000, b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5",
    b"9" * 5000, b"-" + b"9" * 400, b"../", b"/etc/passwd", b"C:\\", b"..\\", b"~", b"%s", b"=1+1", b"@SUM(1)",
    b"\x1b]0;x\x07", b"\x9b", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xb0\xa1",
    b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x05", b"ctorch\n", b"cos\nsystem\n", b"R", b"\x81", b"b", b".",
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0" * 64, b"\xff" * 64, b"\xff\xd8", b"\xff\xd9",
    b"\xff\xc2", b"\xff\xda", b"\xff\xdb", b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"acTL",
    b"\x0a\x80\x80\x80\x80",
]  # fmt: skip


def mutate(whole: bytes, rng: random.Random) -> bytes:
    """One to eight changes: flipped bits, other bytes, bytes in or out, a piece doubled, moved or cut, a token in."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # Headers, which decide most, are near the start.
        at = rng.randrange(min(len(data), rng.choice((32, 256, 4096, len(data)))) or 1) if data else 0
        length = rng.choice((1, 1, 2, 4, 16, 256))
        match rng.randrange(8):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + length] = rng.randbytes(min(length, len(data) - at))
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                other = rng.randrange(len(data) + 1)
                data[at : at + length] = data[other : other + length]
            case 6:
                del data[rng.randrange(len(data) + 1) :]
            case 7:
                token = rng.choice(TOKENS)
                data[at : at + rng.choice((0, len(token)))] = token
    return bytes(data)


VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "A", "a\0b", "\ud800", "\x1b[2J", "x" * 50_000, "9" * 5000, "../x", "/", "=1+1", "\n", "\u202e", [], {},
    [None], [[]], [1, "a"], {"": None}, {"a": {"b": []}}, ["A", "B"], [0.5, 2], "train", "nan", 1.0, ["a"] * 30,
]  # fmt: skip


def change_json(whole: bytes, rng: random.Random) -> bytes:
    """Half of the inputs are valid JSON, or a valid line of it, with other values: changed bytes rarely leave any."""
    if rng.random() < 0.5:
        return mutate(whole, rng)
    lines = whole.splitlines(keepends=True)
    try:
        document, at = json.loads(whole), None
    except ValueError:
        at = rng.randrange(len(lines))
        document = json.loads(lines[at])
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_value(document, rng)
    changed = json.dumps(document).encode()
    return changed if at is None else b"".join([*lines[:at], changed + b"\n", *lines[at + 1 :]])


def _change_value(node: Any, rng: random.Random) -> None:
    """Another value, or none, for something in a tree of lists and objects."""
    while isinstance(node, (list, dict)) and node:
        key = rng.randrange(len(node)) if isinstance(node, list) else rng.choice(list(node))
        if not isinstance(node[key], (list, dict)) or rng.random() < 0.2:
            if rng.random() < 0.1:
                del node[key]
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            return
        node = node[key]


def change_png(whole: bytes, rng: random.Random) -> bytes:
    """Half of the inputs have a changed chunk under a check sum that is right: others stop at the check sums."""
    if rng.random() < 0.5:
        return mutate(whole, rng)
    chunks, at = [], 8
    while at < len(whole):
        length = int.from_bytes(whole[at : at + 4], "big")
        chunks.append((whole[at + 4 : at + 8], whole[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = rng.randrange(len(chunks))
    kind, content = chunks[chosen]
    chunks[chosen] = (rng.choice([kind, kind, b"PLTE", b"tRNS", b"zTXt", b"fcTL"]), mutate(content, rng))
    data = b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )
    return whole[:8] + data


def change_checkpoint(whole: bytes, rng: random.Random) -> bytes:
    """Half of the inputs have a changed pickle under check sums that are right: others stop at the check sums."""
    if rng.random() < 0.5:
        return mutate(whole, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            # `.data/serialization_id` and the like decide nothing.
            new.writestr(name, mutate(content, rng) if name.endswith("data.pkl") else content)
    return buffer.getvalue()


def change_archive(whole: bytes, rng: random.Random) -> bytes:
    """Half of the inputs have a changed entry under check sums that are right: others stop at the check sums."""
    if rng.random() < 0.5:
        return mutate(whole, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            new.writestr(name, mutate(content, rng) if name == chosen else content)
    return buffer.getvalue()
