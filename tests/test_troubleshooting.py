"""The page on troubleshooting shows messages that the code has, each with its cause and its remedy."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"(?ms)^### (.+?)\n+```text\n(.+?)```\n(.+?)(?=^##|\Z)", PAGE)
FEWEST_LITERAL = 25
"""Characters of its own that a template must have: `{path}: {reason}` would be a template of everything."""


def _parts(node: ast.expr) -> Iterator[str | None]:
    """The literal texts of an expression that makes a text, in order; None for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from _parts(value)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _parts(node.left)
        yield from _parts(node.right)
    else:
        yield None


@cache
def _templates() -> frozenset[tuple[str, ...]]:
    """The literal texts of each message of the code in order; a last empty one where something is filled in behind."""
    files = [path for package in ("refseg", "pipelines") for path in sorted((ROOT / package).rglob("*.py"))]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            parts = list(_parts(node))
            texts = [re.sub(r"\s+", " ", part) for part in parts if part is not None]
            if sum(map(len, texts)) >= FEWEST_LITERAL:
                found.add((*texts, *([""] if parts[-1] is None else [])))
    return frozenset(found)


def _is_made_by_the_code(message: str) -> bool:
    """Whether the texts of one template follow each other in the message; its place may stand before them."""
    shown = " ".join(message.removeprefix("refseg: error: ").split()) + " "

    def makes(texts: tuple[str, ...]) -> bool:
        start = 0
        for text in texts:
            found = shown.find(text, start)
            if found < 0:
                return False
            start = found + len(text)
        return not texts[-1] or shown.rstrip().endswith(texts[-1].rstrip())

    return any(makes(texts) for texts in _templates())


@pytest.mark.parametrize("message", [entry[1] for entry in ENTRIES], ids=[entry[0] for entry in ENTRIES])
def test_the_code_has_each_message_that_is_shown(message: str) -> None:
    assert _is_made_by_the_code(message), f"no text of refseg/ or pipelines/ makes this message now:\n{message}"


def test_a_message_that_the_code_does_not_have_is_noticed() -> None:
    assert not _is_made_by_the_code("refseg: error: shards/toy: found no manifest; build the dataset anew")


def test_every_entry_has_a_message_a_cause_and_a_remedy() -> None:
    assert len(ENTRIES) == PAGE.count("\n### ") >= 20
    for title, _, rest in ENTRIES:
        assert re.match(r"\n\*\*Cause\.\*\* .+\n\*\*Remedy\.\*\* ", rest, re.DOTALL), title
