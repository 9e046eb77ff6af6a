"""Templates filled in: each report is a page that needs nothing else, and the same in Markdown."""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from refseg import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report, ready to be written.

    Attributes:
        html: One page that needs nothing else.
        markdown: Scores, rules, breakdowns and facts, without pictures.
    """

    html: str
    markdown: str


def render(name: str, values: Mapping[str, Any], *, written_at: datetime) -> Report:
    """Fill in `<name>.html.j2` and `<name>.md.j2`.

    Args:
        name: Of the templates.
        values: What they speak of.
        written_at: For the foot of the page.
    """
    environment = Environment(
        loader=PackageLoader("refseg.evaluation"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["capitalise"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["percent"] = lambda share: "–" if math.isnan(share) else f"{100 * share:.2f}"
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    environment.filters["signed_percent"] = lambda share: "–" if math.isnan(share) else f"{100 * share:+.2f}"
    known = {**values, "version": __version__, "written_at": f"{written_at:%Y-%m-%d %H:%M %Z}".strip()}
    return Report(
        html=environment.get_template(f"{name}.html.j2").render(known),
        markdown=environment.get_template(f"{name}.md.j2").render(known),
    )
