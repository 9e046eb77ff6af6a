"""Files in a ZIP archive, read by byte ranges: the directory once, then one range for each file; nothing is unpacked.

Python's `zipfile` reads the directory (Zip64 too). Files are read here, since `zipfile` asks for each in several small
parts and one at a time, which over a network takes longer than the work.
"""

import errno
import io
import struct
import zipfile
import zlib
from typing import NamedTuple, Protocol, runtime_checkable

_TAIL_BYTES = 22 + 20 + 56 + 0xFFFF
"""At the end of an archive: the records that tell where its directory lies, and the longest comment."""
_HEADER = struct.Struct("<4s22xHH")
"""Before each file: mark, and bytes of its name and of its extra field."""
_HEADER_MARK = b"PK\x03\x04"
_HEADER_GUESS = 512
"""Read for a file's header and the name and extra field behind it; more is read where these are longer."""
_ENCRYPTED = 0x1


@runtime_checkable
class ByteFile(Protocol):
    """What an archive is read from."""

    def size(self) -> int:
        """Bytes of the file."""

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start`, exactly `length`."""


class ZipMember(NamedTuple):
    """A file in an archive.

    Attributes:
        offset: Of its header in the archive.
        end: Offset before which its last byte lies: that of the next header, or of the directory.
        packed_bytes: Its size in the archive.
        num_bytes: Its size.
        crc: CRC-32 of its bytes.
        method: How it is packed, by ZIP's number.
        flags: ZIP's bits.
    """

    offset: int
    end: int
    packed_bytes: int
    num_bytes: int
    crc: int
    method: int
    flags: int


def read_directory(file: ByteFile) -> dict[str, ZipMember]:
    """The files of an archive by name, in its order; without folders and names that lead out of the archive.

    Raises:
        zipfile.BadZipFile: If it is not an archive, or damaged.
        OSError: Whatever `file` raises.
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
    """Bytes of a file in an archive from `start`, at most `length`; a whole file is compared with its CRC-32.

    One range is read, or two for a part of a file that does not begin at its start.

    Raises:
        OSError: If the file is damaged, encrypted, or packed by another method than deflate; or whatever `file` raises.
    """
    if member.flags & _ENCRYPTED:
        raise OSError(errno.EACCES, "is encrypted; unpack the archive with its password")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise OSError(
            errno.ENOTSUP, f"is packed by method {member.method}, expected deflate or none; unpack the archive"
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
            # One byte more than expected is enough to notice a file that would fill the memory.
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
    """Where a file's bytes begin, from its header."""
    mark, name_bytes, extra_bytes = _HEADER.unpack_from(head) if len(head) >= _HEADER.size else (b"", 0, 0)
    if mark != _HEADER_MARK:
        raise OSError(errno.EIO, "is damaged in the archive: found no header before it; fetch the archive again")
    return _HEADER.size + int(name_bytes) + int(extra_bytes)


class _Seekable(io.RawIOBase):
    """A file for `zipfile`: its last bytes are read once, since `zipfile` reads there in several steps."""

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
