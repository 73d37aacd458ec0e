"""Broken image files by the thousand, the same ones for the same seed: for the decoder's tests and against a server."""

import struct
from collections.abc import Callable, Iterator

import numpy as np

from image_writers import PNG_MAGIC, Rng, png_chunk
from lying_images import lies
from sample_images import originals

__all__ = ["lies", "mutate", "mutated_files", "originals"]


def mutated_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` named files: about one in six a lie, the rest originals with one to three injuries."""
    rng = np.random.default_rng(seed)
    whole, false = originals(seed), lies(seed)
    for number in range(count):
        if rng.random() < 0.16:
            name, data = false[int(rng.integers(len(false)))]
            if rng.random() < 0.2:
                name, data = f"{name}+damaged", mutate(rng, data)
        else:
            name, data = whole[int(rng.integers(len(whole)))]
            for _ in range(int(rng.integers(1, 4))):
                data = mutate(rng, data)
        yield f"{number:05d}-{name}", data


def mutate(rng: Rng, data: bytes) -> bytes:
    """One injury: cut, flipped bits, bytes overwritten, zeroed, doubled or removed, chunks reordered, CRCs mended."""
    if not data:
        return data
    injury = _INJURIES[int(rng.integers(len(_INJURIES)))]
    return injury(rng, data)


def _cut(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _cut_a_little(rng: Rng, data: bytes) -> bytes:
    return data[: -int(rng.integers(1, 24))]


def _flip_bits(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _flip_header_bits(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        out[int(rng.integers(min(len(out), 200)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _stretch(rng: Rng, data: bytes) -> tuple[int, int]:
    start = int(rng.integers(len(data)))
    return start, min(len(data), start + int(rng.integers(1, max(2, len(data) // 4))))


def _overwrite(rng: Rng, data: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:start] + rng.bytes(end - start) + data[end:]


def _zero(rng: Rng, data: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


def _fill(rng: Rng, data: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:start] + b"\xff" * (end - start) + data[end:]


def _double(rng: Rng, data: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:end] + data[start:end] + data[end:]


def _remove(rng: Rng, data: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:start] + data[end:]


def _number_of_extreme_size(rng: Rng, data: bytes) -> bytes:
    extreme = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\x01", b"\x80\0\0\0")
    start = int(rng.integers(min(len(data), 300)))
    return data[:start] + extreme[int(rng.integers(len(extreme)))] + data[start + 4 :]


def _append(rng: Rng, data: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 500)))


def _png_pieces(data: bytes) -> list[tuple[bytes, bytes]]:
    pieces, at = [], len(PNG_MAGIC)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        pieces.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return pieces


def _reorder_chunks(rng: Rng, data: bytes) -> bytes:
    if not data.startswith(PNG_MAGIC):
        return _overwrite(rng, data)
    pieces = _png_pieces(data)
    order = [int(i) for i in rng.permutation(len(pieces))]
    return PNG_MAGIC + b"".join(png_chunk(*pieces[i]) for i in order)


def _damage_inside_right_crcs(rng: Rng, data: bytes) -> bytes:
    if not data.startswith(PNG_MAGIC):
        return _flip_bits(rng, data)
    pieces = _png_pieces(data)
    hurt = int(rng.integers(len(pieces))) if pieces else -1
    bodies = [(n, _flip_bits(rng, body) if i == hurt and body else body) for i, (n, body) in enumerate(pieces)]
    return PNG_MAGIC + b"".join(png_chunk(name, body) for name, body in bodies)


_INJURIES: tuple[Callable[[Rng, bytes], bytes], ...] = (
    _cut,
    _cut,
    _cut_a_little,
    _flip_bits,
    _flip_bits,
    _flip_header_bits,
    _flip_header_bits,
    _overwrite,
    _zero,
    _fill,
    _double,
    _remove,
    _number_of_extreme_size,
    _number_of_extreme_size,
    _append,
    _reorder_chunks,
    _damage_inside_right_crcs,
    _damage_inside_right_crcs,
)
