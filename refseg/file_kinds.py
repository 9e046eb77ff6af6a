"""Recognises by its first bytes a file that stands where data was expected: a pointer, a web page, an archive.

Downloads and clones leave such files under the right name, so a parser's own message ("Expecting value at character 0")
sends a user to fetch the same file again.
"""

HEAD_BYTES = 1024
"""How much of a file `find_stand_in` needs."""

_UTF8_MARK = b"\xef\xbb\xbf"
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (b"/annex/objects/", "a git-annex pointer", "run `git annex get` in its repository"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<!doctype", b"<error>")
_ANSWERS = (b"404: not found", b"404 not found", b"not found", b"entry not found", b"repository not found",
            b"invalid username or password", b"access denied", b"access to ", b"unauthorized")  # fmt: skip
_MOST_ANSWER_BYTES = 400  # a server's refusal in plain text is short; a table may begin with any word
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


def find_stand_in(head: bytes) -> str | None:
    """Say what a file is that holds none of the data its name promises, and what to do about it.

    Args:
        head: The first `HEAD_BYTES` of the file, or all of it where it is shorter.

    Returns:
        Text that continues a message after the file's name, such as "is a Git LFS pointer, not the file itself; run
        `git lfs pull` in its repository"; None: the file is nothing of the kind.
    """
    if not head:
        return "is empty, expected data; write or fetch the file again"
    if not any(head):
        return "holds zero bytes only: a copy or download broke off; fetch the file again"
    text = head.removeprefix(_UTF8_MARK).lstrip().lower()
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
            return f"is {encoding}, expected UTF-8; save it as UTF-8 (spreadsheets name that 'CSV UTF-8')"
    if _is_wide(head):
        return "is UTF-16 without a byte order mark, expected UTF-8; save it as UTF-8"
    return None


def _is_wide(head: bytes) -> bool:
    """True for ASCII text in UTF-16: every second byte is zero and no other."""
    pairs = head[: len(head) // 2 * 2]
    even, odd = pairs[::2], pairs[1::2]
    return len(pairs) >= 4 and ((not any(odd) and all(even)) or (not any(even) and all(odd)))
