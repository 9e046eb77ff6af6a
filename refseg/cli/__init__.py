"""The command line. Each command is a small module of this package, which is imported only when it is called.

A module has `EXAMPLE`, `add_arguments` and `run`. It parses its options, calls one function of the library and prints
the result. `options.py` makes the options from the dataclass or function that is called. `GROUPS` lists the modules in
the order of `refseg --help`.
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
        "quickstart": "run the whole flow on drawn scenes, ending with a trained model and its report",
        "toy": "draw a toy dataset in the real source formats",
    },
    "datasets": {
        "download": "fetch annotations of published datasets and the images that they refer to",
        "unpack-images": "the pictures in Parquet files of the Hugging Face Hub as files, for a build",
        "build-shards": "build verified shards from annotations and images",
        "mix": "join datasets without leaks: no training image that any of them evaluates on",
        "verify": "check a built dataset; list all faults, and exit with code 1 if there are any",
        "stats": "show counts and the published counts, lengths, areas, rejects",
        "browse": "write a page of images, sentences and masks that opens without a server",
        "export": "write a dataset in the formats of REFER, CRIS, COCO's tools or Hugging Face's datasets",
    },
    "training": {
        "plan": "compute what a training run on N nodes x G GPUs will read: steps, bytes, memory",
        "doctor": "time reading, decoding and the other stages on this machine, and name the bottleneck",
        "models": "show a table of models: parameters and multiply-accumulates by part",
        "convert-weights": "convert encoder weights of CLIP, CRIS or LAVT to safetensors, without executing their code",
        "train": "train from a recipe; the same command resumes an interrupted run",
    },
    "evaluation": {
        "evaluate": "score a checkpoint on a split",
        "score": "score masks that another project predicted, by the same rules",
        "report": "write one self-contained page of scores, curves and examples",
    },
    "trained models": {
        "predict": "write masks and overlays for pictures and sentences",
        "demo": "serve a local web page that shows the mask for a picture and an expression",
        "publish": "write a trained model as a folder for the Hugging Face Hub, with a model card",
        "export-model": "export a checkpoint to ONNX or torch.export, as a program for images and one for sentences",
    },
}
COMMANDS = {name: summary for commands in GROUPS.values() for name, summary in commands.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments of the command line; None: those of this process.

    Returns:
        The exit code: 0 done, 1 the data or the run is at fault, 2 wrong usage, 130 interrupted.
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
    """Standard output with control characters escaped, because results contain names and sentences from datasets."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(printable(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Parser(argparse.ArgumentParser):
    """A parser that suggests a similar name for an unknown one.

    Args:
        as_json: Raise a `UsageError` for wrong usage, so that it is printed as JSON.
        options: Arguments of `argparse.ArgumentParser`.
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
    """Return a parser with the arguments of the called command, or of all commands.

    Args:
        argv: Arguments of the command line.
        whole: Add the arguments of every command.
    """
    parser = _Parser(
        prog="refseg",
        description="Referring image segmentation: annotations to verified shards to models to scores.",
        epilog="training with several processes: accelerate launch -m refseg train RECIPE --out DIR --set a.b=c",
        formatter_class=_GroupedHelp,
        as_json=_JSON in argv,
    )
    parser.add_argument("--version", action="version", version=f"refseg {__version__}")
    parser.add_argument(
        "--print-completion", choices=SHELLS, help="print a script that completes these commands in a shell"
    )
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
        if whole or name == called:  # only the called command is imported, so that `refseg --help` is quick
            module = importlib.import_module(f"refseg.cli.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.epilog = f"example:\n  {module.EXAMPLE}"
            command.set_defaults(run=module.run)
    return parser


def _completion(shell: str) -> str:
    """Return the script with which a shell completes commands, options and file names."""
    import shtab

    parser = _parser([], whole=True)
    for action in _actions(parser):
        if action.type in (path_argument, address_argument):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _configure_logging() -> None:
    from refseg.logs import configure_logging

    configure_logging(main_process=os.environ.get("RANK", "0") == "0")
