"""Writes tar files with the offset of each payload, and reads them strictly.

Writer and reader support only plain files in USTAR form, with times and owners of zero. At a damaged header, Python's
`tarfile` assumes the end of the archive and silently loses all later members; `read_members` raises an error.

Each member has a header of 512 bytes and is padded with zeros to a multiple of 512. Example: a sample with a JPEG of
700 bytes and a JSON of 300 bytes has 512 + 1024 + 512 + 512 = 2560 bytes.
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
# A header's checksum is the sum of its bytes, with its own eight bytes counted as spaces. This is the constant part.
_PLAIN_SUM = sum(_BEFORE_SIZE + _AFTER_SIZE + _AFTER_CHECKSUM[2:] + b" " * 8)


class TarWriter:
    """Writes a tar from start to end and hashes it at the same time.

    Args:
        file: An empty file that is open for writing.
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
            name: Name in ASCII, at most 100 characters.
            payload: Content of the member.

        Returns:
            Offset of the payload's first byte.

        Raises:
            ValueError: If the name is not ASCII or too long, or the payload has 8 GiB or more.
        """
        self._write(_header(name, len(payload)))
        offset = self.num_bytes
        self._write(payload)
        self._write(bytes(-len(payload) % BLOCK))
        return offset

    def begin_sample(self) -> None:
        """Start the byte count and the hash that `end_sample` returns."""
        self._sample_digest.reset()
        self._sample_start = self.num_bytes

    def end_sample(self) -> tuple[int, str]:
        """Return the number and the XXH3-64, in 16 hexadecimal digits, of the bytes since `begin_sample`."""
        return self.num_bytes - self._sample_start, self._sample_digest.hexdigest()

    def finish(self) -> None:
        """Append the two zero blocks that end a tar."""
        self._write(_END)

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes written so far."""
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._sample_digest.update(data)
        self.num_bytes += len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A member of a tar, with the name and the payload's offset and bytes."""

    name: str
    offset: int
    payload: bytes


def read_members(path: Path) -> Iterator[TarMember]:
    """Open a tar file and yield its members as `walk_members` does."""
    with path.open("rb") as file:
        yield from walk_members(file)


def walk_members(file: BinaryIO) -> Iterator[TarMember]:
    """Read a tar header by header and yield its members.

    Raises:
        DatasetError: If the file differs from what `TarWriter` writes. Members before the first difference are yielded.
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
    """Return the header of a plain file. It equals a header from `tarfile`, but does not depend on Python's version.

    Raises:
        ValueError: If the name is not ASCII or too long, or the size does not fit into 11 octal digits.
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
    """Return the name and size of a member.

    A header is valid if it equals the header that `TarWriter` writes for the same name and size. This comparison covers
    the checksum, type, mode, times and owners.
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
