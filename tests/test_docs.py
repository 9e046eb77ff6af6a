"""The documentation: it builds, works from the file system, its examples run, and every public name is in it."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from refseg.cli import COMMANDS, _parser
from refseg.config import Recipe, recipe_names

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
    for command in COMMANDS:
        assert f'<h2 id="{command}">' in text("commands.html")
    settings = Recipe.model_json_schema()["$defs"]
    for section, name in {"data": "DataConfig", "train": "TrainConfig", "model": "FCNetConfig"}.items():
        for key in settings[name]["properties"]:
            assert f"<code>{section}.{key}</code>" in text("recipes.html") or key == "name"
    for recipe in recipe_names():
        assert f"<code>{recipe}</code>" in text("recipes.html")
    for page in PAGES:
        assert (site / f"{page.stem}.html").is_file()
        assert f'href="{page.stem}.html"' in text("columns.html")  # in the navigation


@pytest.fixture
def open_page(site: Path, browser: Any) -> Iterator[Any]:
    """Opens a page of the site from the file system; it must complain of nothing and read nothing but its own files."""
    said: list[str] = []
    opened = []

    def open_page(name: str, *, width: int = 1440, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(page)
        own = (site.as_uri() + "/", "data:", "about:")
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else said.append(request.url))
        page.goto((site / name).as_uri())
        return page

    yield open_page
    for page in opened:
        page.close()
    assert said == []


@pytest.mark.slow
def test_the_search_finds_an_option_of_a_command_from_the_file_system(open_page: Any) -> None:
    page = open_page("index.html")
    page.click(".md-search__input")
    page.keyboard.type("shuffled-sentences")
    page.wait_for_selector(".md-search-result__link", timeout=120_000)

    found = [link.get_attribute("href") for link in page.query_selector_all(".md-search-result__link")]
    assert any(address.partition("#")[0].endswith("/commands.html") for address in found)


@pytest.mark.slow
def test_a_copy_button_copies_commands_without_prompts_and_output(open_page: Any) -> None:
    page = open_page("quickstart.html")
    block = page.locator(".highlight", has_text="refseg verify quickstart/shards/toy").first
    block.hover()
    block.locator("[data-md-type=copy]").click()
    page.evaluate("document.body.prepend(document.createElement('textarea'))")
    page.locator("textarea").focus()
    page.keyboard.press("Control+V")

    assert page.locator("textarea").input_value().splitlines() == [
        "refseg build-shards toy/refseg --annotations quickstart/toy --out quickstart/shards/toy --workers 2",
        "refseg verify quickstart/shards/toy",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize("name", ["index.html", "get-refcoco.html", "quickstart.html"])
def test_axe_finds_no_fault_and_no_page_is_wider_than_the_screen(
    name: str, scheme: str, width: int, open_page: Any
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = open_page(name, scheme=scheme, width=width)
    page.wait_for_selector(".md-search-result__meta", state="attached")

    faults = axe.run(page, options={"preload": False}).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("shown", "copied"),
    [
        ("$ refseg verify a\na: no fault\n\n$ refseg stats a\n", "refseg verify a\nrefseg stats a\n"),
        ("$ refseg mix a b \\\n    --out c\nc: 3 refs\n", "refseg mix a b \\\n    --out c\n"),
        ("cost=$ 5\n", "cost=$ 5\n"),
    ],
)
def test_what_is_copied_of_a_block_is_what_a_shell_can_run(shown: str, copied: str) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from docs_copy import copied_text
    finally:
        sys.path.pop(0)

    assert copied_text(shown) == copied


def test_get_refcoco_shows_the_published_counts() -> None:
    table = (ROOT / "docs/get-refcoco.md").read_text(encoding="utf-8").partition("## Build")[2]
    published = json.loads((ROOT / "manifests/published_counts.json").read_text(encoding="utf-8"))
    shown, dataset = {}, ""
    for name, *cells in re.findall(
        r"^\| (`\S+`)? ?\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", table, re.MULTILINE
    ):
        dataset = name.strip("`") or dataset
        split, *counts = cells
        images, refs, sentences = (int(count.replace(",", "")) for count in counts)
        shown[dataset, split] = {"images": images, "refs": refs, "sentences": sentences}

    datasets = ("refcoco/unc", "refcocoplus/unc", "refcocog/umd")
    assert shown == {(name, split): counts for name in datasets for split, counts in published[name].items()}


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
    text = re.sub(r"\\\n\s+", "", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^    (?:\$ )?refseg (?!--)(.+)$", text, re.MULTILINE):
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
