"""Says what a file is that stands where a picture of another kind was expected, and what to do about it."""

from refseg.file_kinds import HEAD_BYTES, find_stand_in

_SAVE = "save it as {wanted}"
_FRAME = "save one of its pictures as {wanted}"

_MARKS = (
    (0, b"\xff\xd8\xff", "a JPEG", _SAVE),
    (0, b"\x89PNG", "a PNG", _SAVE),
    (0, b"GIF8", "a GIF", _SAVE),
    (0, b"BM", "a BMP", _SAVE),
    (0, b"II*\0", "a TIFF", _SAVE),
    (0, b"MM\0*", "a TIFF", _SAVE),
    (0, b"II+\0", "a TIFF", _SAVE),
    (0, b"MM\0+", "a TIFF", _SAVE),
    (8, b"WEBP", "a WebP", _SAVE),
    (4, b"ftypavi", "an AVIF", _SAVE),
    (4, b"ftyphe", "a HEIC", _SAVE),
    (4, b"ftypmif", "a HEIC", _SAVE),
    (4, b"ftypmsf", "a HEIC", _SAVE),
    (4, b"ftypcrx", "a camera's raw picture (CR3)", _SAVE),
    (0, b"\xff\x0a", "a JPEG XL", _SAVE),
    (4, b"JXL \r\n\x87\n", "a JPEG XL", _SAVE),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000", _SAVE),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000", _SAVE),
    (0, b"8BPS", "a Photoshop document", _SAVE),
    (0, b"v/1\x01", "an OpenEXR picture", _SAVE),
    (0, b"\0\0\1\0", "a Windows icon", _SAVE),
    (0, b"\x93NUMPY", "a NumPy array", _SAVE),
    (0, b"<svg", "an SVG drawing", _SAVE),
    (0, b"%PDF", "a PDF", _SAVE),
    *((0, b"P%d%c" % (number, end), "a Netpbm picture", _SAVE) for number in range(1, 8) for end in b"\n \r"),
    (4, b"ftyp", "a video (MP4 or MOV)", _FRAME),  # after the pictures in the same container
    (4, b"moov", "a video (MOV)", _FRAME),
    (4, b"mdat", "a video (MOV)", _FRAME),
    (8, b"AVI ", "a video (AVI)", _FRAME),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", _FRAME),
    (0, b"\xff\xfe", "a text (UTF-16)", "fetch the picture itself"),
    (0, b"\0\5\x16\7", "a Mac's file of attributes (AppleDouble)", "take the file whose name does not begin with ._"),
)
"""Offset of a mark in bytes, the mark, the kind that has it, and what to do."""


def describe_other_kind(data: bytes, wanted: str) -> str:
    """Say what was found and what to do; the text continues a message after the file's name.

    Args:
        data: The file, or its first KiB, of another kind than wanted or damaged from its first bytes on.
        wanted: `JPEG` or `PNG`.
    """
    if not data:
        return f"is empty, expected a {wanted}; fetch the file again"
    head = data[:HEAD_BYTES]
    found = f"starts with {head[:4].hex(' ')}, expected a {wanted}"
    for offset, mark, kind, remedy in _MARKS:
        if head.startswith(mark, offset) and kind != f"a {wanted}":
            return f"{found}; it is {kind}: {remedy.format(wanted=wanted)}"
    stand_in = find_stand_in(head)
    if stand_in is not None:
        return stand_in
    return f"{found}; fetch the file again"
