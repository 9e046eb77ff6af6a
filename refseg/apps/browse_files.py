"""Writes the files of a browse page, either as a folder with parts or as one file that contains all parts.

A page that is opened from the file system cannot fetch files, but it can load scripts. The parts in a folder are
therefore scripts that pass JSON to the page. The content of annotations is always encoded as JSON, in which no HTML tag
can begin or end.
"""

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup

from refseg import __version__
from refseg.aside import file_aside, folder_aside
from refseg.dataset.descriptor import refuse_within_dataset
from refseg.errors import UsageError
from refseg.evaluation.pages import open_templates

_INDEX = "index.html"
_MARK = '<meta name="generator" content="refseg browse'
_MARKED_BYTES = 4096
"""Number of bytes at the beginning of a page that contain the mark."""
_PICTURES_PER_FOLDER = 1000


class PageFiles(ABC):
    """Receives the parts of a page. Nothing appears at the path of the page before `finish`."""

    in_one_file: bool

    @abstractmethod
    def add_part(self, name: str, content: Any) -> None:
        """Add a part of JSON types. `name` consists of letters, digits and `-`."""

    @abstractmethod
    def add_picture(self, number: int, jpeg: bytes) -> str:
        """Add a picture, and return its URL for the page. The URL is empty if it follows from the number."""

    @abstractmethod
    def finish(self, facts: dict[str, Any]) -> None:
        """Write the page itself.

        Args:
            facts: Data that the page reads first, as JSON types. The value of `dataset` is the title.
        """


@contextmanager
def open_page(out: Path) -> Iterator[PageFiles]:
    """Begin a page that appears at its path completely or not at all.

    Args:
        out: A name that ends in `.html` is one file. Any other name is a folder, which may contain an earlier page.

    Raises:
        UsageError: If `out` exists and is not a browse page. If `out` is inside a dataset.
    """
    refuse_within_dataset(out)
    one_file = out.suffix == ".html"
    if one_file and out.is_dir():
        raise UsageError(f"--out: {out} is a folder, expected the name of a file or of a folder without .html")
    if one_file and out.exists() and not _is_ours(out):
        raise UsageError(f"--out: {out} is not a page of `refseg browse`; remove it, or name another file")
    if not one_file:
        _refuse_foreign(out)
    if one_file:
        out.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(out) as aside:
            yield _OneFile(aside)
    else:
        with folder_aside(out, is_shared=True, replace=True) as aside:
            yield _FolderPage(aside)


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace anything that is not a browse page."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out: {out} is a file, expected a folder, or a name that ends in .html for one file")
    page = out / _INDEX
    if page.is_file() and _is_ours(page):
        return
    if any(out.iterdir()):
        raise UsageError(
            f"--out: {out} contains something else than a page of `refseg browse`, expected such a page, an empty "
            "folder or none; name another folder"
        )


def _is_ours(page: Path) -> bool:
    with page.open(encoding="utf-8", errors="replace") as file:
        return _MARK in file.read(_MARKED_BYTES)


def to_json(content: Any) -> bytes:
    """Encode as JSON without `<`. The text can be put into a page or a script unchanged."""
    return orjson.dumps(content).replace(b"<", b"\\u003c")


class _FolderPage(PageFiles):
    """A folder with `index.html`, `parts/*.js` and `pictures/*/*.jpg`."""

    in_one_file = False

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "parts").mkdir(parents=True)

    def add_part(self, name: str, content: Any) -> None:
        text = b'refsegPart("%s", %s);\n' % (name.encode(), to_json(content))
        (self.path / "parts" / f"{name}.js").write_bytes(text)

    def add_picture(self, number: int, jpeg: bytes) -> str:
        path = self.path / "pictures" / str(number // _PICTURES_PER_FOLDER) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
        return ""

    def finish(self, facts: dict[str, Any]) -> None:
        facts = {**facts, "picturesPerFolder": _PICTURES_PER_FOLDER}
        (self.path / _INDEX).write_text(_render(facts, {}), encoding="utf-8")


class _OneFile(PageFiles):
    """One file. Each part is a block of JSON that contains the pictures and is parsed when it is needed."""

    in_one_file = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, bytes] = {}

    def add_part(self, name: str, content: Any) -> None:
        self.parts[name] = to_json(content)

    def add_picture(self, number: int, jpeg: bytes) -> str:  # noqa: ARG002  (parts contain the pictures in order)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()

    def finish(self, facts: dict[str, Any]) -> None:
        self.path.write_text(_render(facts, self.parts), encoding="utf-8")


def _render(facts: dict[str, Any], parts: dict[str, bytes]) -> str:
    environment = open_templates("refseg.apps", "refseg.evaluation")  # reports share style, script and parts
    loader = environment.loader
    assert loader is not None
    viewer, own, look, style = (
        loader.get_source(environment, name)[0] for name in ("viewer.js", "browse.js", "look.css", "browse.css")
    )
    script = viewer + own
    return environment.get_template("browse.html.j2").render(
        facts=facts,
        # A script block needs JSON that Jinja does not escape; `to_json` leaves no `<` in it.
        facts_json=Markup(to_json(facts).decode()),
        parts={name: Markup(content.decode()) for name, content in parts.items()},
        script=Markup(script),
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(look + style),
        version=__version__,
    )
