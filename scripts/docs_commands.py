"""Generates the page of the command line from the argument parsers.

The page shows the arguments, defaults and examples of every command.
"""

import argparse
import re
from collections.abc import Iterator

from refseg import cli

_DEFAULT = re.compile(r"\s*\(default: ([^()]*(?:\([^()]*\)[^()]*)*)\)")
"""Pattern of a default value that a help text states."""
_WIDTH = 88
"""Largest number of characters in a line of usage."""


def commands_page() -> str:
    """Return the page as Markdown, with the commands in the order of `refseg --help`."""
    parser = cli._parser([], whole=True)
    actions = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# Command line",
        "This page is generated from the parsers at each build of the site, so it shows what `--help` shows. "
        "An argument that is written in capitals or without dashes is given by its position.",
        "`accelerate launch refseg/train.py` takes the arguments of `refseg train`. "
        "Exit codes: 0 success, 1 a fault of the data or of the run, 2 wrong usage, 75 stopped by SIGTERM after "
        "saving, 130 interrupted.",
        "Results are printed on standard output, everything else on standard error: progress as a bar on a terminal "
        "and as a line every ten seconds elsewhere, warnings, and what to run next. With `--json`, standard output "
        "holds exactly one JSON object: the result, or, for the exit codes 1, 2 and 130, "
        '`{"error": {"kind": ..., "message": ..., "exit_code": ...}}`. `refseg verify` and `refseg predict` end with '
        "exit code 1 and their usual result if it contains faults.",
        "| command | what it does |\n|---|---|\n"
        + "\n".join(
            f"| **{heading.capitalize()}** | |\n"
            + "\n".join(f"| [`refseg {name}`](#{name}) | {cell(summary)} |" for name, summary in commands.items())
            for heading, commands in cli.GROUPS.items()
        ),
    ]
    for name, command in actions.choices.items():
        parts += _section(f"refseg {name}", name, command)
    return "\n\n".join(parts) + "\n"


def cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")


def _section(title: str, anchor: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {title} {{#{anchor}}}"
    yield cell(parser.description or "")
    yield f"```text\n{_usage(parser)}\n```"
    rows = [_row(parser, action) for action in parser._actions if action.dest != "help"]
    if rows:
        yield "| argument | meaning | default |\n|---|---|---|\n" + "\n".join(rows)
    epilog = parser.epilog or ""
    commands = re.findall(r"(?m)^\s+((?:refseg|accelerate) (?:.*\\\n)*.*)", epilog)
    if commands:
        yield "```shell\n" + "\n".join(re.sub(r"\n\s+", "\n    ", command) for command in commands) + "\n```"


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage lines at a fixed width, which does not depend on the terminal."""
    formatter = argparse.HelpFormatter(parser.prog, width=_WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().rstrip()


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the table row of an argument, with the names, values, meaning and default."""
    formatter = parser._get_formatter()
    meaning = formatter._expand_help(action) if action.help else ""
    stated = _DEFAULT.search(meaning)
    if stated:
        default = stated[1]
        meaning = _DEFAULT.sub("", meaning)
    elif action.required:
        default = "required"
    else:
        has_one = action.option_strings and action.default not in (None, False, "", [], (), argparse.SUPPRESS)
        default = f"`{action.default}`" if has_one else ""
    if action.choices is not None:
        listed = ", ".join(f"`{choice}`" for choice in action.choices)
        meaning = f"{meaning}; one of {listed}"
    return f"| {cell(_names(formatter, action))} | {cell(meaning)} | {cell(default)} |"


def _names(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    """Return the names of an option with its values, or the name of a positional argument."""
    if not action.option_strings:
        return f"`{formatter._format_args(action, action.metavar or action.dest)}`"
    values = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    if action.choices is not None and action.metavar is None:
        values = action.dest.upper()  # the choices are listed in the column of the meaning
    return ", ".join(f"`{name} {values}`" if values else f"`{name}`" for name in action.option_strings)
