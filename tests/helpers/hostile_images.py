"""Images of a few bytes that ask for minutes, or for all memory."""

import struct


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_of_scans(width: int, height: int, scans: int, components: int = 1) -> bytes:
    """A progressive JPEG whose every scan refines all coefficients of a component and says in a few bits: none."""
    tables = segment(0xDB, bytes([0]) + bytes([1]) * 64)  # quantisation
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, components) + parts)
    # One code of one bit, which means: the next 16,384 blocks and as many as 14 bits say are at their end.
    codes = segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    blocks = -(-width // 8) * -(-height // 8)
    bits = "".join("0" + "1" * 14 for _ in range(blocks // 32767 + 1))
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    body = b""
    for number in range(scans):
        approximation = 0x01 if number < components else 0x10
        body += segment(0xDA, bytes([1, number % components + 1, 0, 1, 63, approximation])) + data
    return b"\xff\xd8" + tables + frame + codes + body + b"\xff\xd9"


def jpeg2000_of_precincts(side: int) -> bytes:
    """A codestream of one grey tile whose precincts have a pixel each: 100 bytes, for each pixel some of memory."""
    sizes = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, 1) + bytes([7, 1, 1])
    coding = bytes([1, 2, 0, 1, 0, 5, 4, 4, 0, 1]) + bytes([0x11]) * 6
    quantisation = bytes([0x40]) * 17
    tile = struct.pack(">HIBB", 0, 12 + 2 + 1000, 0, 1)
    head = segment(0x51, sizes) + segment(0x52, coding) + segment(0x5C, quantisation)
    return b"\xff\x4f" + head + segment(0x90, tile) + b"\xff\x93" + bytes(1000) + b"\xff\xd9"
