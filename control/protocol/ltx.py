"""LTX files: the pages that transactions of an SQLite database wrote, as `superfly/ltx` v0.5 has them and Litestream
0.5 reads them. A backup consists of them, so whoever has Litestream can restore one without Skerry.

A file has the last version of each page that transactions `first` to `last` wrote, in ascending order. A snapshot is a
file from transaction 1 with all pages. The format: https://github.com/superfly/ltx (ltx.go, encoder.go, decoder.go;
the description in Litestream's documentation is of another version).
"""

import heapq
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

import lz4.block
from fastcrc import crc64

HEADER_BYTES: Final = 100
MOST_TRANSACTIONS: Final = (1 << 63) - 1
_MAGIC: Final = b"LTX1"
_HEADER: Final = struct.Struct(">4sIIIQQqQqq8sQ20x")
_PAGE: Final = struct.Struct(">IHI")
_END: Final = bytes(6)
"""In the place of the number and flags of a further page."""
_WITHOUT_DATABASE_CHECKSUM: Final = 2
"""Flag of a file that says no checksum of the whole database."""
_WITH_SIZE: Final = 1
"""Flag of a page whose size precedes it."""
_LOCK_OFFSET: Final = 0x4000_0000
"""Offset of the page on which SQLite locks, which has no content: https://www.sqlite.org/fileformat.html#the_lock_byte_page"""
_NUMBER: Final = struct.Struct(">Q")
_CHECKSUM_SET: Final = 1 << 63
_SLACK: Final = 64
"""Bytes by which a page that can't be compressed may grow, beside a 255th of it."""
_HASHED: Final = 256 * 1024
"""Bytes that are hashed at once."""
NO_SALT: Final = bytes(8)


class LtxError(Exception):
    """The bytes aren't a whole LTX file, or files don't follow each other; the message says where."""


class Header(NamedTuple):
    """The beginning of a file."""

    page_bytes: int
    pages: int
    """Pages of the database after the last transaction."""
    first: int
    last: int
    at_ms: int
    """Unix milliseconds of when the file was made: all of it had been committed before."""
    log_offset: int = 0
    """Where its frames began in the write-ahead log; 0 if it isn't made of a log."""
    log_bytes: int = 0
    salt: bytes = NO_SALT
    """Which log that was."""


def name(first: int, last: int) -> str:
    """Return the name of a file's object, which is the same in Litestream's replicas."""
    return f"{first:016x}-{last:016x}.ltx"


def transactions(name: str) -> tuple[int, int] | None:
    """Return the first and the last transaction of a file with this name; None if it isn't such a name."""
    stem, dot, suffix = name.rpartition(".")
    first, dash, last = stem.partition("-")
    if not (dot and dash and suffix == "ltx" and len(first) == len(last) == 16):
        return None
    try:
        span = int(first, 16), int(last, 16)
    except ValueError:
        return None
    return span if 0 < span[0] <= span[1] <= MOST_TRANSACTIONS and f"{span[0]:016x}-{span[1]:016x}" == stem else None


def lock_page(page_bytes: int) -> int:
    """Return the number of the page that no file has."""
    return _LOCK_OFFSET // page_bytes + 1


class _Hash:
    """The checksum of a file, CRC-64/GO-ISO, of pieces that are hashed together."""

    def __init__(self) -> None:
        self._crc = 0
        self._waiting = bytearray()

    def add(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _HASHED:
            self._flush()

    def value(self) -> int:
        self._flush()
        return self._crc | _CHECKSUM_SET

    def _flush(self) -> None:
        if self._waiting:
            self._crc = crc64.go_iso(bytes(self._waiting), self._crc)
            self._waiting.clear()


def write(file: BinaryIO, header: Header, pages: Iterable[tuple[int, bytes]]) -> int:
    """Write a file of pages in ascending order; return its bytes."""
    hashed, index, at = _Hash(), bytearray(), HEADER_BYTES
    head = _HEADER.pack(
        *(_MAGIC, _WITHOUT_DATABASE_CHECKSUM, header.page_bytes, header.pages, header.first, header.last),
        *(header.at_ms, 0, header.log_offset, header.log_bytes, header.salt, 0),
    )
    file.write(head)
    hashed.add(head)
    for number, data in pages:
        packed = lz4.block.compress(data, store_size=False)
        head = _PAGE.pack(number, _WITH_SIZE, len(packed))
        file.write(head)
        file.write(packed)
        hashed.add(head)
        hashed.add(data)
        size = len(head) + len(packed)
        index += _varint(number) + _varint(at) + _varint(size)
        at += size
    # The checksum of the database that ends the file is 0, as its flag says.
    tail = _END + bytes(index) + b"\0" + _NUMBER.pack(len(index) + 1) + bytes(_NUMBER.size)
    hashed.add(tail)
    file.write(tail)
    file.write(_NUMBER.pack(hashed.value()))
    return at + len(tail) + _NUMBER.size


def read_header(file: BinaryIO) -> Header:
    """Read the beginning of a file. Raises: LtxError."""
    return parse_header(_exactly(file, HEADER_BYTES))


def parse_header(data: bytes) -> Header:
    """Read the beginning of a file of its first `HEADER_BYTES`. Raises: LtxError."""
    if len(data) != HEADER_BYTES:
        raise LtxError("it ends too early")
    magic, flags, page, pages, first, last, at_ms, _, offset, size, salt, _ = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise LtxError("it doesn't begin like an LTX file")
    if flags != _WITHOUT_DATABASE_CHECKSUM:
        raise LtxError(f"it has the flags {flags:#x}, which Skerry's files don't have")
    if page not in (512 << shift for shift in range(8)) or not pages:
        raise LtxError(f"it has {pages} pages of {page} bytes")
    if not 0 < first <= last <= MOST_TRANSACTIONS:
        raise LtxError(f"it has the transactions {first} to {last}")
    return Header(page, pages, first, last, at_ms, offset, size, salt)


class Reader:
    """Reads a file that somebody else may have made: what it yields is whole only once it has yielded all."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the beginning. Raises: LtxError."""
        self._file = file
        data = _exactly(file, HEADER_BYTES)
        self.header = parse_header(data)
        self._hash = _Hash()
        self._hash.add(data)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the numbers and contents of all pages, in ascending order.

        Raises: LtxError, also at the end, when the file isn't the one that was written.
        """
        header, hashed = self.header, self._hash
        size, lock = header.page_bytes, lock_page(header.page_bytes)
        most = size + size // 255 + _SLACK
        index, before, at = bytearray(), 0, HEADER_BYTES
        while (head := _exactly(self._file, len(_END))) != _END:
            head += _exactly(self._file, _PAGE.size - len(_END))
            number, flags, packed = _PAGE.unpack(head)
            if flags != _WITH_SIZE or not before < number <= header.pages or number == lock or packed > most:
                raise LtxError(f"after page {before} it has no page that can follow")
            data = _unpacked(_exactly(self._file, packed), size, number)
            hashed.add(head)
            hashed.add(data)
            yield number, data
            index += _varint(number) + _varint(at) + _varint(len(head) + packed)
            at += len(head) + packed
            before = number
        tail = bytes(index) + b"\0" + _NUMBER.pack(len(index) + 1) + bytes(_NUMBER.size)
        if _exactly(self._file, len(tail)) != tail:
            raise LtxError("its index isn't that of its pages")
        hashed.add(_END + tail)
        if _NUMBER.unpack(_exactly(self._file, _NUMBER.size))[0] != hashed.value():
            raise LtxError("its checksum isn't that of its bytes")
        if self._file.read(1):
            raise LtxError("something follows it")


def check_order(headers: Sequence[Header]) -> None:
    """Check that files can be applied one after the other; they may overlap. Raises: LtxError."""
    for one, other in itertools.pairwise(headers):
        if other.first > one.last + 1:
            raise LtxError(f"after transaction {one.last} comes {other.first}: some are missing")
        if other.last <= one.last:
            raise LtxError(f"after transaction {one.last} comes {other.last}, which isn't newer")
        if other.page_bytes != one.page_bytes:
            raise LtxError(f"the pages of transaction {other.first} have another size")


def merge(readers: Sequence[Reader], target: BinaryIO) -> int:
    """Write files that follow each other as one; return its bytes.

    One page of each file is in memory at a time. A snapshot comes out where the first file is one.

    Raises: LtxError.
    """
    headers = [reader.header for reader in readers]
    check_order(headers)
    last = headers[-1]
    header = Header(last.page_bytes, last.pages, headers[0].first, last.last, last.at_ms)
    return write(target, header, _newest(readers, header))


def _newest(readers: Sequence[Reader], header: Header) -> Iterator[tuple[int, bytes]]:
    """Yield the last version of each page that the database still has."""

    def ordered(rank: int, reader: Reader) -> Iterator[tuple[int, int, bytes]]:
        return ((number, rank, data) for number, data in reader.pages())

    whole, lock, due = header.first == 1, lock_page(header.page_bytes), 1
    before = 0
    # Of two files with the same page, the later one has the smaller rank.
    for number, _rank, data in heapq.merge(*(ordered(-at, reader) for at, reader in enumerate(readers))):
        if number == before:
            continue
        before = number
        if number > header.pages:
            # Read on: a file is checked at its end.
            continue
        if whole:
            yield from _empty(due, number, lock, header.page_bytes)
            due = number + 1
        yield number, data
    if whole:
        yield from _empty(due, header.pages + 1, lock, header.page_bytes)


def _empty(first: int, end: int, lock: int, page_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield pages of zeros for those that no transaction wrote, as free pages: a snapshot has all."""
    return ((number, bytes(page_bytes)) for number in range(first, end) if number != lock)


def apply(reader: Reader, target: BinaryIO) -> None:
    """Apply a file to a database's file. Raises: LtxError; then the database's file is of no use; OSError."""
    header = reader.header
    for number, data in reader.pages():
        target.seek((number - 1) * header.page_bytes)
        target.write(data)
    target.truncate(header.pages * header.page_bytes)


def _unpacked(packed: bytes, size: int, number: int) -> bytes:
    try:
        data: bytes = lz4.block.decompress(packed, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise LtxError(f"page {number} can't be unpacked: {error}") from None
    if len(data) != size:
        raise LtxError(f"page {number} has {len(data)} bytes")
    return data


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise LtxError("it ends too early")
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
