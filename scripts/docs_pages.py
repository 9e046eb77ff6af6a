"""Generates the pages for commands, recipes, the API reference, notebooks and columns of the documentation site.

MkDocs calls this hook, because `mkdocs.yml` names it. If the environment variable REFSEG_REPOSITORY holds the
repository's URL, the home page and the foot of every page link to it.
"""

import json
import os
import re
from pathlib import Path

from docs_commands import commands_page
from docs_copy import mark_copied_text
from docs_recipes import recipes_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COLUMNS = "manifests/COLUMNS.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation the pages of `docs/` that it does not name, and a reference for each package."""
    named = re.findall(r"[\w/.-]+\.md", json.dumps(config.nav))
    guides = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in named]
    for section in config.nav or ():
        if "Guides" in section:
            section["Guides"] = guides
        if "Reference" in section:
            section["Reference"] += [{name: f"reference/{name}.md"} for name in packages()]
    repository = os.environ.get("REFSEG_REPOSITORY")
    if repository:
        config.extra["social"] = [{"icon": "fontawesome/brands/git-alt", "link": repository, "name": "Repository"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated from files outside `docs/`."""
    made = {
        "columns.md": (ROOT / COLUMNS).read_text(encoding="utf-8"),
        "commands.md": commands_page(),
        "recipes.md": recipes_page(),
    }
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook_page(path)
    for name, modules in packages().items():
        made[f"reference/{name}.md"] = reference_page(name, modules)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Replace links that lead out of `docs/` with links to pages of the site; add the repository to the home page."""
    repository = os.environ.get("REFSEG_REPOSITORY")
    if repository and page.file.src_path == "index.md":
        markdown = markdown.replace("git clone REPOSITORY", f"git clone {repository}")
        markdown = markdown.replace("a clone of the repository", f"a clone of [the repository]({repository})")
    markdown = re.sub(r"\]\(\.\./(notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)
    return markdown.replace(f"](../{COLUMNS})", "](columns.md)")


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Make copy buttons copy commands without prompts and output."""
    return mark_copied_text(html)


def notebook_page(path: Path) -> str:
    """Return the cells of a notebook as Markdown. Cells with shell commands become shell blocks."""
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
    """Return the public modules of the library by package, without the command line, which has its own page."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "refseg").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "cli" not in parts and not parts[-1].startswith("__"):
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return found


def reference_page(package: str, modules: list[str]) -> str:
    """Return a page of references that mkdocstrings fills in."""
    return f"# {package}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
