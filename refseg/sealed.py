"""Writes and checks JSON objects that hold a hash of their own content, so that a later change of a field is found."""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from refseg.errors import RefsegError
from refseg.json_text import parse_json

SEAL = "content_xxh3_128"
"""Key of the hash, which is XXH3-128 over the other keys and values, written as JSON with sorted keys."""


class BrokenSealError(RefsegError):
    """The text is not a JSON object, or was changed after it was sealed; the message begins with what was found."""


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with their hash as the last key.

    Args:
        fields: JSON values; an existing hash among them is replaced.
    """
    content = {key: value for key, value in fields.items() if key != SEAL}
    return {**content, SEAL: _content_hash(content)}


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object without comparing its hash.

    Raises:
        BrokenSealError: If the text is not a JSON object.
    """
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise BrokenSealError(f"found text that is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise BrokenSealError(f"found {type(fields).__name__}, expected a JSON object")
    return fields


def open_seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the stored hash with the fields; white space and the order of keys do not matter.

    Returns:
        The fields without the hash.

    Raises:
        BrokenSealError: If the hash is missing or does not match the fields.
    """
    content = {key: value for key, value in fields.items() if key != SEAL}
    expected = fields.get(SEAL)
    if expected is None:
        raise BrokenSealError(f"found no {SEAL}, the hash of its content")
    try:
        found = _content_hash(content)
    except RecursionError as error:  # the parser's limit on nesting is a little higher than the writer's
        raise BrokenSealError("found content that is nested too deeply") from error
    if found != expected:
        raise BrokenSealError(f"found content with the hash {found}, expected {SEAL} {expected}")
    return content


def _content_hash(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())
