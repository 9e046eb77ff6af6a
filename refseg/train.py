"""Entry point of training from a recipe, with one process or many, on CPU or GPU.

Three commands start it: `accelerate launch refseg/train.py RECIPE --out DIR`, `accelerate launch -m refseg.train` and
`refseg train`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # When this file is started by its path, Python puts `refseg/` first on the import path. `refseg/data` or
    # `refseg/config.py` would then hide other modules of these names. The parent folder takes its position.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import signal
import threading
from collections.abc import Sequence

from refseg.addresses import path_argument
from refseg.exits import exit_code_of, print_next

EXAMPLE = """examples:
  accelerate launch --config_file refseg/configs/accelerate_cpu2.yaml refseg/train.py toy --out runs/toy
  accelerate launch --multi_gpu --num_processes 8 refseg/train.py fcnet-refcoco-r101 --out runs/refcoco \\
      --set train.precision=bf16 data.root=/data/refcoco-unc \\
      model.image_weights=weights/clip-rn101.safetensors model.text_weights=weights/clip-rn101.safetensors

The same command resumes a run that was interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and train.

    Returns:
        The exit code, as `run` defines it.

    Raises:
        SystemExit: With code 2 if an argument is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="accelerate launch refseg/train.py",
        description="Train from a recipe.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of training to a parser: the recipe, the run's folder, and overrides of the recipe."""
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument(
        "--out",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="the run's folder: made if absent, resumed if it holds a run, refused if it holds anything else",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="overrides of the recipe, for example train.lr=3e-5",
    )


def run(args: argparse.Namespace) -> int:
    """Train, and report an error that all processes share only once.

    Returns:
        The exit code: 0 (done), 1 (the data or the run is wrong), 2 (wrong usage), 75 (stopped by SIGTERM), or 130
        (interrupted by Ctrl-C).
    """
    return exit_code_of(
        lambda: _train(args), interrupted="interrupted; the same command resumes from the last checkpoint"
    )


def _train(args: argparse.Namespace) -> int:
    from refseg.config import load_recipe
    from refseg.logs import configure_logging

    configure_logging(main_process=os.environ.get("RANK", "0") == "0")
    recipe = load_recipe(args.recipe, args.set)
    from refseg.training.launch import die_with_launcher
    from refseg.training.trainer import leave_process_group, train

    die_with_launcher()
    train(recipe, args.out)
    leave_process_group()
    if os.environ.get("RANK", "0") == "0":
        print_next("refseg", "evaluate", args.out, "--split", recipe.data.val_split, "--save-predictions")
    return 0


def exit_at_sigterm() -> None:
    """End the process at SIGTERM with exit code 75, until training installs its own handling of the signal.

    Before the first step there is no work to save. A thread ends the process, because the main thread may be waiting
    for other machines inside torch, and Python would run a signal handler only after that wait. Must be called from
    the main thread.
    """
    from refseg.errors import PreemptedError

    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch_for_sigterm() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        if os.environ.get("RANK", "0") == "0":
            message = "refseg: error: stopped by SIGTERM while no step was running; the same command resumes the run\n"
            os.write(sys.stderr.fileno(), message.encode())
        os._exit(PreemptedError.exit_code)

    threading.Thread(target=watch_for_sigterm, daemon=True).start()
    # Python's C-level handler writes the signal's number into the pipe. It is installed only together with a Python
    # handler, so this one does nothing.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main())
