"""Parses paths and URLs as users write them: `~` is expanded, and text that is neither a path nor a URL is refused.

Shells expand `~` at the start of a word only, so `--out=~/x` and `data.root=~/x` reach the program unexpanded.
"""

import argparse
import os
import re
from pathlib import Path

from refseg.errors import UsageError

_URL_AS_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
"""Matches `s3:/bucket`, which `Path` makes of `s3://bucket`. A single letter before the colon is a drive name."""

_LONGEST_NAME = 255
"""Length limit of a file name in bytes on common file systems."""


def is_remote(address: Path | str) -> bool:
    """True for a URL such as `s3://bucket/folder`, False for a path."""
    return "://" in str(address)


def parse_address(address: Path | str) -> Path | str:
    """Return a URL unchanged, and a path with `~` expanded.

    Raises:
        UsageError: If the address is empty, is a URL with one slash, or names the home folder of an unknown user.
    """
    return address if is_remote(address) else _expanded(address)


def local_path(address: Path | str) -> Path:
    """Return a path of this machine with `~` expanded; for files that cannot be read or written through a URL.

    Raises:
        UsageError: If the address is a URL, or `parse_address` refuses it.
    """
    if is_remote(address):
        raise UsageError(
            f"found the URL {address}, expected a path of this machine; use a local path and copy to or from the URL"
        )
    return _expanded(address)


def whole_address(address: Path | str) -> str:
    """Return a URL unchanged, and a path as an absolute path, which does not depend on the working directory."""
    parsed = parse_address(address)
    return str(parsed.absolute()) if isinstance(parsed, Path) else parsed


def path_argument(text: str) -> Path:
    """Apply `local_path` as the `type` of an argparse argument, so that the error message names the argument."""
    try:
        return local_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def address_argument(text: str) -> str:
    """Apply `parse_address` as the `type` of an argparse argument, so that the error message names the argument."""
    try:
        return str(parse_address(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _expanded(address: Path | str) -> Path:
    text = str(address)
    if not text.strip():
        raise UsageError(
            "found an empty path, expected a file or folder; check that the shell variables in the command are set"
        )
    if "\0" in text:
        raise UsageError(f"found a path with a zero byte, {text!r:.200}; expected the name of a file or folder")
    path = Path(text)
    if long := next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None):
        raise UsageError(
            f"found a path with a name of {len(os.fsencode(long))} bytes, {long[:40]}..., "
            f"expected at most {_LONGEST_NAME}"
        )
    if text.startswith("./"):  # `Path` drops the `./`, and the rest could then be read as a URL or a home folder
        return path.absolute() if str(path).startswith("~") or _URL_AS_PATH.match(str(path)) else path
    if found := _URL_AS_PATH.match(text):
        url = f"{found[1]}://{text[found.end() :]}"
        raise UsageError(f"found {text}, expected a path or a URL; write {url}, or ./{text} for a folder of that name")
    try:
        return path.expanduser()
    except RuntimeError as error:  # raised for `~name` if there is no such user
        message = f"found {text}, but no home folder of that user; write ./{text} for a folder of that name"
        raise UsageError(message) from error
