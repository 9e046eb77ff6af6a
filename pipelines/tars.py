"""Tar files byte by byte: a writer that knows each payload's offset, a reader that lets nothing pass.

Both are narrower than the format: plain files, USTAR, times and owners zero. Python's `tarfile` takes a damaged
header for the end of the archive and so loses every later member without a word; `read_members` reports it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from refseg.errors import DatasetError

BLOCK = 512
_END = bytes(2 * BLOCK)

_NAME_BYTES = 100
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2  # mode, user, group
_AFTER_SIZE = b"\0" + b"00000000000\0"  # time
_AFTER_CHECKSUM = b"\0 " + b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(247)
# A checksum is the sum of all bytes, its own eight counted as spaces.
_PLAIN_SUM = sum(_BEFORE_SIZE + _AFTER_SIZE + _AFTER_CHECKSUM[2:] + b" " * 8)


class TarWriter:
    """Writes a tar from front to back and hashes it on the way.

    Args:
        file: Opened for writing, empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._sample_digest = xxhash.xxh3_64()
        self._sample_start = 0
        self.num_bytes = 0

    def add(self, name: str, payload: bytes) -> int:
        """Append a member.

        Args:
            name: ASCII, at most 100 characters.
            payload: Its content.

        Returns:
            Offset of the payload's first byte.
        """
        self._write(_header(name, len(payload)))
        offset = self.num_bytes
        self._write(payload)
        self._write(bytes(-len(payload) % BLOCK))
        return offset

    def begin_sample(self) -> None:
        """Count and hash from here on what `end_sample` tells."""
        self._sample_digest.reset()
        self._sample_start = self.num_bytes

    def end_sample(self) -> tuple[int, str]:
        """Bytes since `begin_sample` and their XXH3-64, 16 hexadecimal digits."""
        return self.num_bytes - self._sample_start, self._sample_digest.hexdigest()

    def finish(self) -> None:
        """Append the two zero blocks that end a tar."""
        self._write(_END)

    @property
    def sha256(self) -> str:
        """Of everything written so far."""
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._sample_digest.update(data)
        self.num_bytes += len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A member: its name, and where its payload lies."""

    name: str
    offset: int
    payload: bytes


def read_members(path: Path) -> Iterator[TarMember]:
    """Walk through a tar file; see `walk_members`."""
    with path.open("rb") as file:
        yield from walk_members(file)


def walk_members(file: BinaryIO) -> Iterator[TarMember]:
    """Walk through a tar, header by header, and yield its members.

    Raises:
        DatasetError: At the first byte that `TarWriter` would not have written; members before it are yielded.
    """
    while True:
        start = file.tell()
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            if header + file.read() != _END:
                raise DatasetError(f"at byte {start}: expected two zero blocks and the end of the file")
            return
        name, size = _read_header(header, start)
        payload = file.read(size)
        padding = file.read(-size % BLOCK)
        if len(payload) < size or len(padding) < -size % BLOCK:
            raise DatasetError(f"at byte {start}: member {name} ends after {len(payload)} bytes, expected {size}")
        if padding.strip(b"\0"):
            raise DatasetError(f"at byte {start}: member {name} is not followed by zeros")
        yield TarMember(name=name, offset=start + BLOCK, payload=payload)


def _header(name: str, size: int) -> bytes:
    """The header of a plain file, as `tarfile` writes it, but the same with every version of Python (and faster).

    Raises:
        ValueError: If the name is not ASCII or too long, or 11 octal digits do not hold the size.
    """
    field = name.encode("ascii")
    if not 0 < len(field) <= _NAME_BYTES or not 0 <= size < 8**11:
        raise ValueError(f"cannot write member {name!r} of {size} bytes")
    digits = b"%011o" % size
    checksum = _PLAIN_SUM + sum(field) + sum(digits)
    return b"%s%s%s%s%s%06o%s" % (
        field, bytes(_NAME_BYTES - len(field)), _BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM,
    )  # fmt: skip


def _read_header(header: bytes, start: int) -> tuple[str, int]:
    """Name and size of a member.

    A header is right if it is the one `TarWriter` makes from its name and size: that covers checksum, type,
    mode, times and owners at once.
    """
    if len(header) < BLOCK:
        raise DatasetError(f"at byte {start}: found {len(header)} more bytes, expected a header or two zero blocks")
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
        size = int(header[124:136].rstrip(b"\0 "), 8)
        right = size >= 0 and _header(name, size) == header
    except ValueError:
        right = False
    if not right:
        raise DatasetError(f"at byte {start}: the member's header is damaged")
    return name, size
