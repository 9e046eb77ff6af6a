"""The documentation: it builds, asks no other host, its examples run, and every public name is in it."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from refseg.cli import COMMANDS, _parser

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class _Loads(HTMLParser):
    """What a browser asks for when it shows a page, and the classes of the page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.classes.update(given.get("class", "").split())
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(given["href"])
        elif tag != "a":
            self.addresses += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


def _is_elsewhere(address: str) -> bool:
    return re.match(r"(https?:)?//", address) is not None


@pytest.mark.slow
@pytest.mark.slow
def test_no_page_of_the_site_asks_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))

    assert len(pages) > 15
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.addresses, page
        assert not [address for address in loads.addresses if _is_elsewhere(address)], page
        # What makes Material's script fetch: diagrams, and the stars of a repository.
        assert not loads.classes & {"mermaid", "md-source"}, page
    for sheet in site.rglob("*.css"):
        asked = re.findall(r"""(?:url\(|@import\s)\s*["']?([^)"']+)""", sheet.read_text(encoding="utf-8"))
        assert not [address for address in asked if _is_elsewhere(address)], sheet


@pytest.mark.slow
@pytest.mark.slow
def test_the_site_has_guides_notebooks_and_the_reference(site: Path) -> None:
    def text(page: str) -> str:
        return (site / page).read_text(encoding="utf-8")

    assert 'id="refseg.api.load_dataset"' in text("reference/refseg.html")
    assert 'id="refseg.data.samples.RefDataset.loader"' in text("reference/refseg.data.html")
    assert "WordsTimesPixels" in text("notebooks/your_own_model.html")
    assert 'href="columns.html"' in text("format.html")
    for page in PAGES:
        assert (site / f"{page.stem}.html").is_file()
        assert f'href="{page.stem}.html"' in text("columns.html")  # in the navigation


@pytest.mark.parametrize(
    ("page", "num_blocks", "printed"),
    [
        ("docs/index.md", 2, "torch.Size([8, 3, 480, 480])"),
        ("README.md", 1, ", 96, 96)"),
        ("docs/evaluation.md", 1, "cris {'oIoU': "),
    ],
)
def test_the_examples_of_the_first_page_run(
    page: str,
    num_blocks: int,
    printed: str,
    toy_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, target in {"quickstart/shards/toy": toy_run.parent / "shards", "quickstart/run": toy_run}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(import refseg\n.*?|from refseg.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)

    assert len(code) == num_blocks
    names: dict[str, object] = {}
    for block in code:
        exec(block, names)
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_shown_parses(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^    \$ refseg (.+)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        assert words[0] in COMMANDS
        assert _parser(words).parse_args(words).run


def _undocumented(path: Path) -> Iterator[str]:
    """Public names of a file without a docstring; a method that overrides one may leave it to the base class."""

    def look(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
        for child in node.body:
            if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
                continue
            name = f"{where}.{child.name}"
            overrides = isinstance(node, ast.ClassDef) and bool(node.bases) and isinstance(child, ast.FunctionDef)
            if ast.get_docstring(child) is None and not overrides:
                yield name
            if isinstance(child, ast.ClassDef):
                yield from look(child, name)

    module = ast.parse(path.read_text(encoding="utf-8"))
    where = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if ast.get_docstring(module) is None and path.stat().st_size:
        yield where
    yield from look(module, where)


def test_every_public_name_is_documented() -> None:
    files = [path for package in ("refseg", "pipelines") for path in sorted((ROOT / package).rglob("*.py"))]
    # A command's two functions are the same in each: `refseg/cli/__init__.py` says what they do.
    own = {"add_arguments", "run"}
    missing = [name for path in files for name in _undocumented(path) if name.rpartition(".")[2] not in own]

    assert len(files) > 100
    assert missing == []
