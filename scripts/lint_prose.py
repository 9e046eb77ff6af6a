"""Checks the wording of the README and the pages of docs/ with proselint and the project's own list of words.

Usage: python scripts/lint_prose.py [FILE.md ...]. It prints each finding with the wording to use instead. The exit code
is 1 if there are findings.
"""

import re
import sys
import tomllib
from pathlib import Path

from proselint.checks import __register__ as proselint_checks
from proselint.config import Config
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckFlags, types
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
STYLE = ROOT / "scripts" / "voice.toml"
PROSELINT_CHECKS = (
    "archaism",
    "cliches",
    "hedging",
    "lexical_illusions",
    "malapropisms",
    "misc.waxed",
    "mixed_metaphors",
    "needless_variants",
    "nonwords",
    "oxymorons",
    "redundancy",
    "uncomparables",
    "weasel_words",
)
"""Checks of proselint that suit technical English. Its checks of typography are not used, because they do not suit
Markdown."""
_NOT_PROSE = re.compile(
    r"^```.*?^```|^<!--.*?-->|^(?:    |\t)(?![-*\d])[^\n]*$|`[^`\n]+`|\]\([^)\n]*\)|^\|[^\n]*\d[^\n]*\|$|https?://\S+",
    re.DOTALL | re.MULTILINE,
)
"""Pattern of text that is not checked: code, targets of links, and rows of tables with numbers."""


def prose_of(markdown: str) -> str:
    """Return the text with everything that is not prose replaced with `#`, so that lines and columns do not change."""
    return _NOT_PROSE.sub(lambda found: re.sub(r"[^\n|]", "#", found[0]), markdown)


def lint(path: Path) -> list[str]:
    """Check a file and return one line of text per finding."""
    _register()
    config = Config(max_errors=1000, checks=dict.fromkeys(("voice", *PROSELINT_CHECKS), True))
    prose = prose_of(path.read_text(encoding="utf-8"))
    found = []
    for result in LintFile(str(path), prose).lint(config):
        line, column = result.pos
        start, end = result.check_result.span
        message = " ".join(result.check_result.message.split())
        if "#" not in f"\n{prose}\n"[start:end]:
            found.append(f"{path}:{line}:{column}: {message}")
    return found


def _register() -> None:
    registry = CheckRegistry()
    if registry.checks:
        return
    instead = tomllib.loads(STYLE.read_text(encoding="utf-8"))["instead"]
    own = Check(
        check_type=types.PreferredForms(items=instead),
        path="voice",
        message="write: {}; not '{}'",
        flags=CheckFlags(allow_quotes=True),
    )
    registry.register_many((*proselint_checks, own))


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]] or [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    faults = [fault for path in files for fault in lint(path)]
    print("\n".join(faults) if faults else f"prose: no fault in {len(files)} files")
    sys.exit(bool(faults))
