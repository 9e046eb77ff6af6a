"""Recognises by its first bytes a file that is not what its name promises, such as a Git LFS pointer or a web page.

Downloads and clones leave such files under the expected name. A parser's own message ("Expecting value at character 0")
would not explain this, and the user would download the same file again.
"""

HEAD_BYTES = 1024
"""Number of bytes from the start of a file that `find_stand_in` needs."""

_UTF8_MARK = b"\xef\xbb\xbf"
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (b"/annex/objects/", "a git-annex pointer", "run `git annex get` in its repository"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<!doctype", b"<error>")
_ANSWERS = (b"404: not found", b"404 not found", b"not found", b"entry not found", b"repository not found",
            b"invalid username or password", b"access denied", b"access to ", b"unauthorized")  # fmt: skip
_MOST_ANSWER_BYTES = 400  # a server's refusal in plain text is short, but a long table may begin with the same words
_XML = b"<?xml"
_ARCHIVES = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
)
_WIDE_MARKS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"),
               (b"\xfe\xff", "UTF-16"))  # fmt: skip
_SAVE = "save it as {wanted}"
_FRAME = "save one of its pictures as {wanted}"

_PICTURE_MARKS = (
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
"""For each kind of file: offset of its mark in bytes, the mark, the name of the kind, and what the user should do."""


def find_stand_in(head: bytes, *, is_xml: bool = False) -> str | None:
    """Describe a file that does not hold the data that its name promises, and say what to do.

    Args:
        head: The first `HEAD_BYTES` of the file, or the whole file if it is shorter.
        is_xml: True for a file that should be XML, which a server's message may be, too.

    Returns:
        Text that continues a message after the file's name, such as "is a Git LFS pointer, not the file itself; run
        `git lfs pull` in its repository". None: the file is none of the known kinds.
    """
    if not head:
        return "is empty, expected data; write or fetch the file again"
    if not any(head):
        return "holds zero bytes only: a copy or download was interrupted; fetch the file again"
    text = head.removeprefix(_UTF8_MARK).lstrip().lower()
    if is_xml and text.startswith(_XML):
        return None
    for mark, kind, remedy in _POINTERS:
        if text.startswith(mark):
            return f"is {kind}, not the file itself; {remedy}, or download the file itself"
    if text.startswith(_PAGES) or (len(head) <= _MOST_ANSWER_BYTES and text.startswith(_ANSWERS)):
        return (
            "is a web page or a server's message, not the file itself; open it in an editor to read what the server "
            "said, then download the file itself"
        )
    for mark, kind in _ARCHIVES:
        if head.startswith(mark):
            return f"is {kind}; unpack it first"
    for mark, encoding in _WIDE_MARKS:
        if head.startswith(mark):
            return f"is {encoding}, expected UTF-8; save it as UTF-8 (spreadsheet programs call it 'CSV UTF-8')"
    if _is_wide(head):
        return "is UTF-16 without a byte order mark, expected UTF-8; save it as UTF-8"
    return None


def describe_other_kind(data: bytes, wanted: str) -> str:
    """Describe a file that is not of the wanted kind, and say what to do.

    The text is appended to a message after the file name.

    Args:
        data: Bytes of the file, at least the first KiB. The caller has found that it is not a valid `wanted` file.
        wanted: The expected kind, `JPEG` or `PNG`.
    """
    if not data:
        return f"is empty, expected a {wanted}; fetch the file again"
    head = data[:HEAD_BYTES]
    found = f"starts with {head[:4].hex(' ')}, expected a {wanted}"
    for offset, mark, kind, remedy in _PICTURE_MARKS:
        if head.startswith(mark, offset) and kind != f"a {wanted}":
            return f"{found}; it is {kind}: {remedy.format(wanted=wanted)}"
    stand_in = find_stand_in(head)
    if stand_in is not None:
        return stand_in
    return f"{found}; fetch the file again"


def _is_wide(head: bytes) -> bool:
    """Return True for ASCII text in UTF-16, of which exactly every second byte is zero: `61 00 62 00` is "ab"."""
    pairs = head[: len(head) // 2 * 2]
    even, odd = pairs[::2], pairs[1::2]
    return len(pairs) >= 4 and ((not any(odd) and all(even)) or (not any(even) and all(odd)))
