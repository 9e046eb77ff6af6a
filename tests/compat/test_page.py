"""The pages on the format and on other projects show what is there."""

import re
import shlex
from pathlib import Path

import pytest

from refseg.cli import _parser

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("format.md", "other-projects.md")}


def test_every_command_shown_parses() -> None:
    shown = [line.strip() for page in PAGES.values() for line in page.splitlines() if line.startswith("    refseg ")]

    assert len(shown) == 4
    for line in shown:
        words = shlex.split(line)[1:]
        assert _parser(words).parse_args(words).run


def test_every_name_told_to_import_is_there() -> None:
    page = PAGES["other-projects.md"]
    lines = [line.strip() for line in page.splitlines() if line.startswith("    from refseg")]
    table = page.split("| project | import |")[1].split("**Images.**")[0]
    names = [name.split(" as ")[0] for name in re.findall(r"\| `([^`]+)` \|", table)]

    assert (len(lines), names) == (1, ["REFER", "MergedREFER", "G_REFER"])
    for line in (*lines, *(f"from refseg.compat.refer import {name}" for name in names)):
        exec(line)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGES[name]):
        assert (DOCS / link).exists(), link
