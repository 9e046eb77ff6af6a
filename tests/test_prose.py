"""The check of wording finds what it is for, and leaves code alone."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("proselint", reason="needs proselint")
SCRIPT = Path(__file__).parents[1] / "scripts" / "lint_prose.py"


def _lint(page: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, page], capture_output=True, text=True)


def test_a_phrase_of_the_list_is_named_with_its_line_and_what_to_write(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("| a | 1 |\n|---|---|\n\nA run that was killed is gone on with.\n\n| b | 2 |\n")
    found = _lint(page)

    assert found.returncode == 1
    assert found.stdout.startswith(f"{page}:4:")
    assert "write: resume, continue; not 'gone on with'" in found.stdout


def test_code_and_links_are_not_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Call `go on with` or [this](going on with).\n\n    refseg go on with\n\n```text\ngo on with\n```\n"
    )

    assert _lint(page).returncode == 0
