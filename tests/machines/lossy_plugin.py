"""A plugin of nbdkit: a disk that holds back what is written to it until that is flushed, as a disk's own cache does.

When its only client has gone, which is the power cut, half of the blocks that are held are written, drawn at random: a
disk may write some by itself, in any order. Then there is the file `cut`.
"""

import os
import pathlib
import random

import nbdkit

API_VERSION = 2
BLOCK = 4096
settings: dict[str, str] = {}
held: dict[int, bytearray] = {}


def config(key: str, value: str) -> None:
    settings[key] = value


def open(readonly: bool) -> int:
    return os.open(settings["disk"], os.O_RDWR)


def get_size(h: int) -> int:
    return os.fstat(h).st_size


def can_fua(h: int) -> int:
    return int(nbdkit.FUA_NATIVE)


def pread(h: int, buf: bytearray, offset: int, flags: int) -> None:
    first, end = offset // BLOCK, (offset + len(buf) + BLOCK - 1) // BLOCK
    data = bytearray(os.pread(h, (end - first) * BLOCK, first * BLOCK))
    for number in held.keys() & set(range(first, end)):
        data[(number - first) * BLOCK : (number - first + 1) * BLOCK] = held[number]
    buf[:] = data[offset - first * BLOCK :][: len(buf)]


def pwrite(h: int, buf: bytearray, offset: int, flags: int) -> None:
    at = 0
    while at < len(buf):
        number, begin = divmod(offset + at, BLOCK)
        piece = buf[at : at + BLOCK - begin]
        new = bytearray(held.get(number) or os.pread(h, BLOCK, number * BLOCK))
        new[begin : begin + len(piece)] = piece
        held[number] = new
        if flags & nbdkit.FLAG_FUA:
            os.pwrite(h, held.pop(number), number * BLOCK)
        at += len(piece)


def flush(h: int, flags: int) -> None:
    for number in list(held):
        os.pwrite(h, held.pop(number), number * BLOCK)


def close(h: int) -> None:
    for number in held:
        if random.random() < 0.5:
            os.pwrite(h, held[number], number * BLOCK)
    pathlib.Path(settings["cut"]).touch()
    os._exit(0)
