"""Training from a recipe, by one process or many, on CPU or GPU.

`accelerate launch refseg/train.py RECIPE --out DIR`, `accelerate launch -m refseg.train` and `refseg train` start it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started by path, Python puts this file's folder first on the import path: there `data`, `models`, `config` would
    # shadow anybody's modules of those names. The folder above it is meant.
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
        As `run`; 2 where an argument is wrong.
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
    """Add recipe, folder and overrides."""
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
    """Train, and report an error once, not once for each process.

    Returns:
        0 done, 1 the data or the run is at fault, 2 wrong usage, 75 asked to leave, 130 interrupted.
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


def leave_at_sigterm() -> None:
    """Until training hears SIGTERM itself, end by it as a run that has saved its work does: here there is none to save.

    A thread does it at once: the main one may be in torch, waiting for other machines, and Python's handlers wait with
    it. Only the main thread may call this.
    """
    from refseg.errors import PreemptedError

    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        if os.environ.get("RANK", "0") == "0":
            said = "refseg: error: asked to leave (SIGTERM) while no step was under way; the same command goes on\n"
            os.write(sys.stderr.fileno(), said.encode())
        os._exit(PreemptedError.exit_code)

    threading.Thread(target=listen, daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # what writes to the pipe is what stands before such a handler


if __name__ == "__main__":
    leave_at_sigterm()
    sys.exit(main())
