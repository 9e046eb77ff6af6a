"""Texts from datasets and users are shown as texts in HTML and in Markdown, whatever characters they hold."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from refseg.evaluation.pages import markdown_text

MARKS = [
    *"\\`*_[]|~$<>#-+=.)(1! ab&;:é\n\t\r\0\u2028",
    "&lt;",
    "![x](http://127.0.0.1/a.png)",
    "<img src=x>",
    "---",
    "    ",
]


def shown(markdown: str) -> list[str]:
    """Return the texts of a Markdown document as GitHub shows them; other elements are named in brackets."""
    blocks = [token for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown) if token.type == "inline"]
    kinds = {"text", "text_special"}
    return [
        "".join(part.content if part.type in kinds else f"[{part.type}]" for part in block.children or ())
        for block in blocks
    ]


@given(st.lists(st.sampled_from(MARKS), min_size=1, max_size=9).map("".join))
@example("![x](http://127.0.0.1:1/beacon.png) <img src=x onerror=alert(1)> |a|b|")
@example("snake_case and _emphasis_ and num_tokens")
@example("1. item")
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_is_shown_as_itself_in_markdown_on_one_line_and_in_one_cell(text: str) -> None:
    line = re.sub(r"[\s\0]+", " ", text)
    escaped = markdown_text(text)

    assert shown(f"- x {escaped}") == [f"x {line}".strip()]
    assert shown(f"| {escaped} | b |\n|---|---|\n| {escaped} | d |\n") == [line.strip(), "b", line.strip(), "d"]
    for begin in ("", "- ", "# "):
        assert "".join(shown(begin + escaped)) == line.strip()


@pytest.mark.parametrize("text", ["num_tokens", "up to 2 words", "10–30 %", "+1.25", "-0.50", "IoU >= 0.5", "x-y (z)"])
def test_plain_texts_stay_readable_in_markdown(text: str) -> None:
    assert markdown_text(text) == text
