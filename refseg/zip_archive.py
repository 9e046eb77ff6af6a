"""Reads files in a ZIP archive by byte ranges: the directory once, then one range for each file.

Python's `zipfile` reads the directory, also of Zip64 archives. It would read a file in several small parts, one after
the other, which is slow over a network; so this module reads the files itself.
"""

import errno
import io
import struct
import zipfile
import zlib
from typing import NamedTuple, Protocol, runtime_checkable

_TAIL_BYTES = 22 + 20 + 56 + 0xFFFF
"""Largest number of bytes after the directory: the records with its offset, and the longest possible comment."""
_HEADER = struct.Struct("<4s22xHH")
"""Header before each file, of which these fields are read: its mark, and the bytes of the name and the extra field."""
_HEADER_MARK = b"PK\x03\x04"
_HEADER_GUESS = 512
"""Number of bytes that are read for a file's header, name and extra field; more are read if these are longer."""
_ENCRYPTED = 0x1


@runtime_checkable
class ByteFile(Protocol):
    """The interface of a file from which an archive is read."""

    def size(self) -> int:
        """Return the size of the file in bytes."""

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from offset `start`."""


class ZipMember(NamedTuple):
    """A file in an archive.

    Attributes:
        offset: Offset of its header in the archive.
        end: Offset of what follows it: the next header, or the directory.
        packed_bytes: Compressed size in bytes.
        num_bytes: Uncompressed size in bytes.
        crc: CRC-32 of the uncompressed bytes.
        method: ZIP's number of the compression method.
        flags: ZIP's flag bits.
    """

    offset: int
    end: int
    packed_bytes: int
    num_bytes: int
    crc: int
    method: int
    flags: int


def read_directory(file: ByteFile) -> dict[str, ZipMember]:
    """Return the files of an archive by name, in its order, without folders and names that lead out of the archive.

    Raises:
        zipfile.BadZipFile: If the file is not a ZIP archive, or is damaged.
        OSError: If `file` cannot be read.
    """
    with zipfile.ZipFile(_Seekable(file)) as archive:
        found = sorted(archive.infolist(), key=lambda info: info.header_offset)
        ends = [*(info.header_offset for info in found[1:]), archive.start_dir]
    return {
        info.filename: ZipMember(
            *(info.header_offset, end, info.compress_size, info.file_size, info.CRC),
            *(info.compress_type, info.flag_bits),
        )
        for info, end in zip(found, ends, strict=True)
        if not info.is_dir() and not info.filename.startswith("/") and ".." not in info.filename.split("/")
    }


def read_member(file: ByteFile, member: ZipMember, start: int = 0, length: int | None = None) -> bytes:
    """Return at most `length` bytes of a file in an archive from offset `start`; a whole file's CRC-32 is checked.

    One range of the archive is read, or two for a part that does not start at the file's first byte.

    Raises:
        OSError: If the file is damaged, encrypted, or compressed by a method other than deflate, or if `file` cannot be
            read.
    """
    if member.flags & _ENCRYPTED:
        raise OSError(errno.EACCES, "is encrypted; unpack the archive with its password")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise OSError(
            errno.ENOTSUP, f"is compressed by method {member.method}, expected deflate or none; unpack the archive"
        )
    stop = member.num_bytes if length is None else min(start + length, member.num_bytes)
    if start >= stop:
        return b""
    is_whole = start == 0 and stop == member.num_bytes
    if is_whole or member.method == zipfile.ZIP_DEFLATED:
        return _read_whole(file, member)[start:stop]
    head = file.read(member.offset, min(member.end - member.offset, _HEADER_GUESS + (stop if start == 0 else 0)))
    begin = _data_offset(head)
    data = head[begin + start : begin + stop]
    return data if len(data) == stop - start else file.read(member.offset + begin + start, stop - start)


def _read_whole(file: ByteFile, member: ZipMember) -> bytes:
    raw = file.read(member.offset, member.end - member.offset)
    begin = _data_offset(raw)
    data = raw[begin : begin + member.packed_bytes]
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            # At most one byte more than expected is decompressed, so that a wrong size cannot use up the memory.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.num_bytes + 1)
        except zlib.error as error:
            raise OSError(errno.EIO, f"is damaged in the archive ({error}); fetch the archive again") from error
    if len(data) != member.num_bytes:
        raise OSError(
            errno.EIO,
            f"is damaged in the archive: found {len(data)} bytes, expected {member.num_bytes}; fetch the archive again",
        )
    if (crc := zlib.crc32(data)) != member.crc:
        raise OSError(
            errno.EIO,
            f"is damaged in the archive: found CRC-32 {crc:08x}, expected {member.crc:08x}; fetch the archive again",
        )
    return data


def _data_offset(head: bytes) -> int:
    """Return the offset of a file's bytes from the start of its header."""
    mark, name_bytes, extra_bytes = _HEADER.unpack_from(head) if len(head) >= _HEADER.size else (b"", 0, 0)
    if mark != _HEADER_MARK:
        raise OSError(errno.EIO, "is damaged in the archive: found no header before it; fetch the archive again")
    return _HEADER.size + int(name_bytes) + int(extra_bytes)


class _Seekable(io.RawIOBase):
    """A seekable file for `zipfile`, whose last bytes are read once, because `zipfile` reads there in several steps."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._num_bytes = file.size()
        self._tail_start = max(0, self._num_bytes - _TAIL_BYTES)
        self._tail = file.read(self._tail_start, self._num_bytes - self._tail_start) if self._num_bytes else b""
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "negative seek position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._num_bytes - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if not length:
            return b""
        start = self._position
        in_tail = start - self._tail_start
        data = self._tail[in_tail : in_tail + length] if in_tail >= 0 else self._file.read(start, length)
        self._position += len(data)
        return data
