"""The README shows what is there: tested code, commands that parse, recipes and links that exist."""

import re
import shlex
from pathlib import Path

import pytest

from refseg.cli import COMMANDS, _parser
from refseg.config import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_webdataset_loop_is_the_one_that_is_tested() -> None:
    shown = re.search(r"```python\n(import sys.*?)```", README, re.DOTALL)
    code = (ROOT / "docs" / "read_with_webdataset.py").read_text(encoding="utf-8").split('"""', 2)[2].lstrip()

    assert shown is not None
    assert shown[1] == code


def test_every_refseg_command_shown_parses() -> None:
    shown = [line.removeprefix("    $ refseg ") for line in README.splitlines() if line.startswith("    $ refseg ")]

    assert len(shown) >= 4
    for line in shown:
        words = shlex.split(line)
        assert words[0] in COMMANDS
        assert _parser(words).parse_args(words).run


def test_every_recipe_named_exists() -> None:
    recipes = re.findall(r"train\.py ([a-z][\w-]+)", README)

    assert "toy-quick" in recipes
    for name in recipes:
        load_recipe(name)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    path, _, place = link.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8") if place else ""
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)

    assert (ROOT / path).exists()
    assert place in ("", *(heading.lower().replace(" ", "-") for heading in headings))


def test_it_has_at_most_150_lines_and_nothing_left_to_fill_in() -> None:
    assert len(README.splitlines()) <= 150
    assert "@@" not in README
