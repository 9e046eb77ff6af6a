"""Pages of the site that are made of other files: the reference, the notebooks, the column reference.

A hook of MkDocs, named in `mkdocs.yml`.
"""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COLUMNS = "manifests/COLUMNS.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the guides into the navigation: every page of `docs/` that it does not name."""
    named = re.findall(r"[\w/.-]+\.md", json.dumps(config.nav))
    guides = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in named]
    for section in config.nav or ():
        if "Guides" in section:
            section["Guides"] = guides
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in `docs/`."""
    made = {"columns.md": (ROOT / COLUMNS).read_text(encoding="utf-8")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook_page(path)
    for name, modules in packages().items():
        made[f"reference/{name}.md"] = reference_page(name, modules)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links that lead out of `docs/` lead to where the site has their page."""
    markdown = re.sub(r"\]\(\.\./(notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)
    return markdown.replace(f"](../{COLUMNS})", "](columns.md)")


def notebook_page(path: Path) -> str:
    """The cells of a notebook as Markdown; commands of the shell as such."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            is_shell = all(line.startswith("!") for line in text.splitlines())
            text = re.sub(r"(?m)^!", "", text) if is_shell else text
            text = f"```{'shell' if is_shell else 'python'}\n{text}\n```"
        parts.append(text)
    return "\n\n".join(parts) + "\n"


def packages() -> dict[str, list[str]]:
    """Public modules of the library by package; the command line describes itself."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "refseg").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "cli" not in parts and not parts[-1].startswith("__"):
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return found


def reference_page(package: str, modules: list[str]) -> str:
    """A page that mkdocstrings fills."""
    return f"# {package}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
