import gzip

import pytest

from refseg.file_kinds import find_stand_in

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (POINTER.replace(b"\n", b"\r\n"), "is a Git LFS pointer"),
        (b"/annex/objects/MD5E-s12--0a\n", "is a git-annex pointer"),
        (b"\n\n<!DOCTYPE html>\n<html>", "is a web page"),
        (b"\xef\xbb\xbf<html lang=en>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page or a server's message"),
        (b"404: Not Found", "is a web page or a server's message"),
        (b"Entry not found", "is a web page or a server's message"),
        (b"PK\x03\x04\x14\x00", "is a ZIP archive; unpack it first"),
        (gzip.compress(b"[]", mtime=0), "is compressed with gzip"),
        ("[1]".encode("utf-16"), "is UTF-16, expected UTF-8"),
        ("[1]".encode("utf-16-be"), "is UTF-16 without a byte order mark"),
        ("[1]".encode("utf-32"), "is UTF-32, expected UTF-8"),
        (b"", "is empty"),
        (b"\0" * 100, "holds zero bytes only"),
    ],
)
def test_a_file_that_stands_in_the_place_of_data_is_named_with_the_remedy(head: bytes, said: str) -> None:
    found = find_stand_in(head)

    assert found is not None
    assert found.startswith(said)
    assert ";" in found  # what it is; what to do


@pytest.mark.parametrize(
    "head",
    [
        b'[{"ref_id": 1}]', b'\xef\xbb\xbf{"images": []}', b"\x80\x02]q\x00.", b"(lp0\n.", b"image,sentence,split\n",
        b"not found,sentence,split\n" * 50, b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n", b"PAR1", b"1\n",
    ],
)  # fmt: skip
def test_data_is_nothing_of_the_kind(head: bytes) -> None:
    assert find_stand_in(head) is None
