"""Renders each report from templates, as one self-contained HTML page and as Markdown.

Texts from datasets and users (sentences, categories, names of files and datasets) are escaped for the format of the
template. Templates `.html.j2` are HTML, and templates `.md.j2` are Markdown.
"""

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, pass_eval_context, select_autoescape
from jinja2.nodes import EvalContext
from markupsafe import Markup

from refseg import __version__

_HTML_IN_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;"})
_INLINE_MARKS = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning within a line of Markdown. An underscore between letters, as in `num_tokens`, has none."""
_BLOCK_MARKS = re.compile(r"^( ?)([>=]|[-+](?!\d)|\d{1,9}(?=[.)](?:\s|$)))")
"""Marks at the start of a line that make it a heading, a quotation, a rule or the item of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A rendered report.

    Attributes:
        html: Self-contained HTML page.
        markdown: Scores, rules, breakdowns and information about the run as Markdown, without pictures.
    """

    html: str
    markdown: str


def render(name: str, values: Mapping[str, Any], *, written_at: datetime) -> Report:
    """Render the templates `<name>.html.j2` and `<name>.md.j2`.

    Args:
        name: Name of the templates.
        values: Variables of the templates.
        written_at: Time for the foot of the page.
    """
    environment = open_templates("refseg.evaluation")
    environment.filters["capitalise"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["percent"] = lambda share: "–" if math.isnan(share) else f"{100 * share:.2f}"
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    environment.filters["signed_percent"] = lambda share: "–" if math.isnan(share) else f"{100 * share:+.2f}"
    known = {
        **values,
        "version": __version__,
        "written_on": f"{written_at:%Y-%m-%d}",
        "written_at": f"{written_at:%Y-%m-%d %H:%M %Z}".strip(),
    }
    return Report(
        html=environment.get_template(f"{name}.html.j2").render(known),
        markdown=environment.get_template(f"{name}.md.j2").render(known),
    )


def open_templates(*packages: str) -> Environment:
    """Open the templates of packages. A value is escaped for the template's format unless it is `Markup`.

    Args:
        packages: Packages whose folders `templates` are searched in this order. Files `.html.j2` are HTML pages. All
            other files are Markdown.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=select_autoescape(["html.j2"]),
        finalize=_escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def markdown_text(text: str) -> str:
    """Return Markdown that shows exactly the given text on one line, also within a table.

    Runs of white space and control characters become single spaces, because they could end the line.
    """
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text)
    escaped = _INLINE_MARKS.sub(r"\\\g<0>", line.translate(_HTML_IN_MARKDOWN))
    return _BLOCK_MARKS.sub(_escape_block_mark, escaped)


def _escape_block_mark(found: re.Match[str]) -> str:
    space, mark = found.groups()
    return f"{space}{mark}\\" if mark.isdigit() else f"{space}\\{mark}"


@pass_eval_context
def _escape_markdown(context: EvalContext, value: object) -> object:
    """Escape a value of a template that Jinja does not escape itself."""
    return value if context.autoescape or isinstance(value, Markup) else markdown_text(str(value))
