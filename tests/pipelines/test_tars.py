import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import xxhash

from pipelines.tars import BLOCK, TarWriter, read_members
from refseg.errors import DatasetError


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Members `a.jpg` of 700 bytes (payload at 512) and `a.json` of 3 bytes (payload at 2048); 3584 bytes in all."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        writer = TarWriter(file)
        assert writer.add("a.jpg", b"j" * 700) == 512
        assert writer.add("a.json", b"{ }") == 2048
        writer.finish()
        assert writer.num_bytes == 3584
    return path


def test_tarfile_reads_what_was_written(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        members = [(info.name, info.offset_data, info.size) for info in archive]

    assert members == [("a.jpg", 512, 700), ("a.json", 2048, 3)]
    assert [(member.name, member.offset, len(member.payload)) for member in read_members(tar)] == members


@pytest.mark.parametrize(("name", "size"), [("a.json", 0), ("n" * 100, 7), ("000000581857_1.jpg", 300_000)])
def test_a_header_is_the_one_ustar_asks_for(name: str, size: int) -> None:
    file = io.BytesIO()
    TarWriter(file).add(name, bytes(size))
    header = file.getvalue()[:BLOCK]

    # tarfile checks the sum and reads every field.
    info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    assert (info.name, info.size, info.mode, info.type) == (name, size, 0o644, tarfile.REGTYPE)
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.linkname) == (0, 0, 0, "", "", "")
    assert header[257:265] == b"ustar\x0000"
    assert not header[265:].strip(b"\0")


@pytest.mark.parametrize("name", ["", "n" * 101, "é.jpg"])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot write member|ascii"):
        TarWriter(io.BytesIO()).add(name, b"")


def test_a_sample_is_counted_and_hashed_from_its_first_header_to_its_last_padding() -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    writer.add("0.jpg", b"j" * 600)
    writer.begin_sample()
    writer.add("1.jpg", b"j" * 600)  # 512 + 1024
    writer.add("1.json", b"{ }")  # 512 + 512
    num_bytes, xxh3 = writer.end_sample()
    writer.finish()

    assert num_bytes == 2560
    assert xxh3 == xxhash.xxh3_64_hexdigest(file.getvalue()[1536:4096])
    assert writer.sha256 == hashlib.sha256(file.getvalue()).hexdigest()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "at byte 0: found 0 more bytes, expected a header"),
        (100, "at byte 0: found 100 more bytes"),  # in the first header
        (1000, r"at byte 0: member a\.jpg ends after 488 bytes, expected 700"),  # in data
        (1400, r"at byte 0: member a\.jpg ends after 700 bytes"),  # in the padding
        (1536, "at byte 1536: found 0 more bytes"),  # at a member's border: tarfile sees nothing wrong
        (1700, "at byte 1536: found 164 more bytes"),  # in a later header
        (2560, "at byte 2560: found 0 more bytes"),  # without the end
        (3072, "at byte 2560: expected two zero blocks"),
    ],
)
def test_a_cut_anywhere_is_reported(tar: Path, size: int, message: str) -> None:
    tar.write_bytes(tar.read_bytes()[:size])

    with pytest.raises(DatasetError, match=message):
        list(read_members(tar))


@pytest.mark.slow
def test_every_flipped_bit_outside_of_payloads_is_reported(tar: Path) -> None:
    whole = tar.read_bytes()
    payload = {*range(512, 512 + 700), *range(2048, 2048 + 3)}
    for position in range(len(whole)):
        if position not in payload:
            data = bytearray(whole)
            data[position] ^= 1 << (position % 8)
            tar.write_bytes(data)
            with pytest.raises(DatasetError, match="at byte"):
                list(read_members(tar))


def test_bytes_after_the_end_are_reported(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes() + bytes(512))

    with pytest.raises(DatasetError, match="at byte 2560: expected two zero blocks and the end of the file"):
        list(read_members(tar))


def test_a_tar_by_others_is_refused_at_its_first_header(tmp_path: Path) -> None:
    path = tmp_path / "gnu.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.mtime = 1
        archive.addfile(info, io.BytesIO())

    with pytest.raises(DatasetError, match="at byte 0: the member's header is damaged"):
        list(read_members(path))
