"""Paths and URLs as a person writes them: `~` is expanded, and text that is neither a path nor a URL is refused.

Shells expand `~` at the start of a word only, so `--out=~/x` and `data.root=~/x` arrive here as they were typed.
"""

import argparse
import os
import re
from pathlib import Path

from refseg.errors import UsageError

_URL_AS_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
"""What is left of `s3://bucket` once it was a `Path`; one letter alone is a drive."""

_LONGEST_NAME = 255
"""Bytes; file systems allow no more."""


def is_remote(address: Path | str) -> bool:
    """True for a URL such as `s3://bucket/folder`, False for a path."""
    return "://" in str(address)


def parse_address(address: Path | str) -> Path | str:
    """A URL as it is, a path with `~` expanded.

    Raises:
        UsageError: If it is empty, a URL with one slash, or names the home folder of an unknown user.
    """
    return address if is_remote(address) else _expanded(address)


def local_path(address: Path | str) -> Path:
    """A path of this machine with `~` expanded, for what is read or written by its path alone.

    Raises:
        UsageError: If it is a URL; or as `parse_address`.
    """
    if is_remote(address):
        raise UsageError(
            f"found the URL {address}, expected a path of this machine; use a local path and copy to or from the URL"
        )
    return _expanded(address)


def whole_address(address: Path | str) -> str:
    """A URL as it is, a path from the root of the file system, so that it means the same from every folder."""
    parsed = parse_address(address)
    return str(parsed.absolute()) if isinstance(parsed, Path) else parsed


def path_argument(text: str) -> Path:
    """`local_path` as the type of a command's argument: argparse names the argument in the message."""
    try:
        return local_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def address_argument(text: str) -> str:
    """`parse_address` as the type of a command's argument."""
    try:
        return str(parse_address(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _expanded(address: Path | str) -> Path:
    text = str(address)
    if not text.strip():
        raise UsageError("found an empty path, expected a file or folder; is a variable of the shell not set?")
    if "\0" in text:
        raise UsageError(f"found a path with a zero byte, {text!r:.200}; expected the name of a file or folder")
    path = Path(text)
    if long := next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None):
        raise UsageError(
            f"found a path with a name of {len(os.fsencode(long))} bytes, {long[:40]}..., "
            f"expected at most {_LONGEST_NAME}"
        )
    if text.startswith("./"):  # `Path` drops it, and its name would then be read as a URL or a home folder
        return path.absolute() if str(path).startswith("~") or _URL_AS_PATH.match(str(path)) else path
    if found := _URL_AS_PATH.match(text):
        url = f"{found[1]}://{text[found.end() :]}"
        raise UsageError(f"found {text}, expected a path or a URL; write {url}, or ./{text} for a folder of that name")
    try:
        return path.expanduser()
    except RuntimeError as error:  # of `~name`
        message = f"found {text}, but no home folder of that user; write ./{text} for a folder of that name"
        raise UsageError(message) from error
