"""JSON as text: one error for every text that is not JSON, and one form that digests are made of and samples hold."""

import json
import re
from typing import Any

import orjson

# Python writes 1e-05 and 1e+16 for what orjson writes as 0.00001, 1e-6 and, in older releases, 1e16.
# Words that look alike do no harm.
_SMALL = b"0.0000"
_EXPONENT = re.compile(rb"e(?:-|\d\d\d?(?:[,}\]]|\Z))")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it is not JSON, its encoding is broken, or it is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def canonical_json(value: Any) -> bytes:
    """Write plain values as Python's `json` does without spaces and escapes: UTF-8, keys in their order.

    orjson takes a third of `json`'s time and writes all alike but very small and very large floats, and nan.

    Args:
        value: Dicts with text keys, lists, tuples, text, bools, None, 64-bit integers and finite floats, nested.
    """
    text = orjson.dumps(value)
    if _SMALL in text or _EXPONENT.search(text):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return text
