import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.json_text import canonical_json

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text("ab\x00é\u2028"), inner),
    max_leaves=20,
)


def by_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_bytes_are_those_of_pythons_json(value: Any) -> None:
    assert canonical_json(value) == by_json(value)


@pytest.mark.parametrize("letter", [*range(0x20), 0x22, 0x5C, 0x7F, 0x85, 0x2028, 0xFFFF, 0x1F992])
def test_letters_are_escaped_as_by_pythons_json(letter: int) -> None:
    assert canonical_json([chr(letter)]) == by_json([chr(letter)])


def test_numbers_with_an_exponent_keep_pythons_form() -> None:
    assert canonical_json([1e-5, 1e16]) == b"[1e-05,1e+16]"
    for exponent in range(sys.float_info.min_10_exp, sys.float_info.max_10_exp + 1):
        for digits in ("1", "1.3", "1.2345678901234567"):
            value = float(f"{digits}e{exponent}")
            assert canonical_json(value) == repr(value).encode() == by_json(value)
