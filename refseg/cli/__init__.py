"""The command line: each command is a thin module of this package, imported only when it is called.

A module has `EXAMPLE`, `add_arguments` and `run`: it parses its options, calls one function of the library and prints
the result. `options.py` makes the options of the dataclass or function that is called. `GROUPS` lists the modules as
`refseg --help` shows them.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn, cast

from refseg import __version__
from refseg.addresses import address_argument, path_argument
from refseg.errors import UsageError
from refseg.exits import exit_code_of
from refseg.wording import did_you_mean, printable

SHELLS = ("bash", "zsh", "tcsh")
_JSON = "--json"
GROUPS = {
    "first steps": {
        "quickstart": "the whole flow on drawn scenes, ending in a trained model and its report",
        "toy": "draw a toy dataset in the real source formats",
    },
    "datasets": {
        "build-shards": "annotations and images to verified shards",
        "mix": "leak-free union of datasets: no training image that any of them evaluates on",
        "verify": "check a built dataset; exit 1 on any fault, each named",
        "stats": "counts against the published ones, lengths, areas, rejects",
        "browse": "a page of images, sentences and masks that opens without a server",
        "export": "shards as the files of REFER, CRIS, COCO's tools or Hugging Face's datasets",
    },
    "training": {
        "plan": "what a training run on N nodes x G GPUs will read: steps, bytes, memory",
        "doctor": "time reading, decoding and the rest on this machine; name what slows a run down",
        "models": "table of models: parameters and multiply-accumulates by part",
        "convert-weights": "encoder weights of CLIP, CRIS or LAVT to safetensors, without running what is in them",
        "train": "train from a recipe; the same command resumes a run that was interrupted",
    },
    "evaluation": {
        "evaluate": "score a checkpoint on a split",
        "score": "score masks that another project predicted, under the same rules",
        "report": "one self-contained page of scores, curves and examples",
    },
    "trained models": {
        "predict": "masks and overlays for pictures and sentences",
        "demo": "a local web page: a picture, an expression, its mask",
        "publish": "a trained model as a folder of the Hugging Face Hub, with a model card",
        "export-model": "a checkpoint as two programs, ONNX or torch.export: image and sentence",
    },
}
COMMANDS = {name: summary for commands in GROUPS.values() for name, summary in commands.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the data or the run is at fault, 2 wrong usage, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _run(words), as_json=_JSON in words)


def _run(argv: Sequence[str]) -> int:
    parser = _parser(argv)
    args = parser.parse_args(argv)
    if args.print_completion:
        print(_completion(args.print_completion))
        return 0
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    _configure_logging()
    with redirect_stdout(cast("Any", _PrintableOutput(sys.stdout))):
        return int(args.run(args))


class _PrintableOutput:
    """Standard output on which control characters are shown: results name files, categories and sentences."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(printable(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Parser(argparse.ArgumentParser):
    """A parser that says which name may have been meant by an unknown one.

    Args:
        as_json: Raise wrong usage as an error, which is then printed as JSON.
        options: As argparse's parser takes them.
    """

    def __init__(self, *, as_json: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._as_json = as_json

    def error(self, message: str) -> NoReturn:
        if self._as_json:
            raise UsageError(message)
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            message = f"found {value!r}, expected one of {', '.join(known)}{did_you_mean(str(value), known)}"
            raise argparse.ArgumentError(action, message)

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message) if message else message, file)


class _GroupedHelp(argparse.HelpFormatter):
    """Help with a heading above the first command of each group."""

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        heading = _HEADINGS.get(action.dest) if isinstance(action, _COMMAND) else None
        return (
            text if heading is None else f"\n{' ' * (self._current_indent - self._indent_increment)}{heading}:\n{text}"
        )


_COMMAND = argparse._SubParsersAction._ChoicesPseudoAction
_HEADINGS = {next(iter(commands)): heading for heading, commands in GROUPS.items()}


def _parser(argv: Sequence[str], *, whole: bool = False) -> argparse.ArgumentParser:
    """The parser of the command that is called, or of all.

    Args:
        argv: What is called.
        whole: Know the arguments of every command.
    """
    parser = _Parser(
        prog="refseg",
        description="Referring image segmentation: annotations to verified shards to models to scores.",
        epilog="training by several processes: accelerate launch -m refseg train RECIPE --out DIR --set a.b=c",
        formatter_class=_GroupedHelp,
        as_json=_JSON in argv,
    )
    parser.add_argument("--version", action="version", version=f"refseg {__version__}")
    parser.add_argument("--print-completion", choices=SHELLS, help="print what completes these commands in a shell")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            as_json=_JSON in argv,
        )
        if whole or name == called:  # only the called command is imported: `refseg --help` stays quick
            module = importlib.import_module(f"refseg.cli.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.epilog = f"example:\n  {module.EXAMPLE}"
            command.set_defaults(run=module.run)
    return parser


def _completion(shell: str) -> str:
    """The script by which a shell completes all commands with their options, and files where they are asked for."""
    import shtab

    parser = _parser([], whole=True)
    for action in _actions(parser):
        if action.type in (path_argument, address_argument):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _configure_logging() -> None:
    from refseg.logs import configure_logging

    configure_logging(main_process=os.environ.get("RANK", "0") == "0")
