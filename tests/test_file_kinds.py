import gzip

import pytest

from refseg.file_kinds import describe_other_kind, find_stand_in

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


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"BM6$\0\0", "it is a BMP: save it as JPEG"),
        (b"GIF89a", "it is a GIF: save it as JPEG"),
        (b"II*\0\x08\0\0\0", "it is a TIFF"),
        (b"\x89PNG\r\n\x1a\n", "it is a PNG"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "it is a WebP"),
        (b"\0\0\0\x1cftypavif", "it is an AVIF"),
        (b"\0\0\0\x18ftypheic", "it is a HEIC"),
        (b"\0\0\0\x18ftypmif1", "it is a HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "it is a JPEG XL"),
        (b"\xff\x0a\xfa\x7f", "it is a JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "it is a JPEG 2000"),
        (b"8BPS\0\1", "it is a Photoshop document"),
        (b"P6\n20 10\n255\n", "it is a Netpbm picture"),
        (b"<svg xmlns=", "it is an SVG drawing"),
        (b"\x93NUMPY\1\0", "it is a NumPy array"),
        (b"\0\0\0\x20ftypisom", "it is a video (MP4 or MOV): save one of its pictures as JPEG"),
        (b"\x1a\x45\xdf\xa3\1\0", "it is a video (Matroska or WebM)"),
        (b"RIFF\x24\0\0\0AVI LIST", "it is a video (AVI)"),
        (b"\0\5\x16\7\0\2\0\0", "it is a Mac's file of attributes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\3\4\x14\0", "is a ZIP archive"),
        (b"", "is empty, expected a JPEG; fetch the file again"),
        (b"\0" * 64, "holds zero bytes only"),
        (b"\1\2\3\4\5", "starts with 01 02 03 04, expected a JPEG; fetch the file again"),
    ],
)
def test_what_stands_where_a_jpeg_was_expected_is_named_with_what_to_do(head: bytes, said: str) -> None:
    assert said in describe_other_kind(head, "JPEG")


def test_a_jpeg_where_a_png_was_expected_is_named() -> None:
    assert describe_other_kind(b"\xff\xd8\xff\xe0", "PNG") == (
        "starts with ff d8 ff e0, expected a PNG; it is a JPEG: save it as PNG"
    )
