"""`refseg quickstart`: draw, train and score a small example; each step is a command printed before it runs."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from refseg.apps.options import QuickstartOptions
from refseg.cli.options import add_options, given
from refseg.exits import print_next

if TYPE_CHECKING:
    from refseg.apps.quickstart import Outcome, Status
    from refseg.apps.quickstart_steps import Step

EXAMPLE = "refseg quickstart --out quickstart"
SECONDS_BETWEEN_LINES = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, QuickstartOptions, out={"metavar": "DIR"}, num_images={"flag": "--images"})


def run(args: argparse.Namespace) -> int:
    from refseg.apps.quickstart import run_quickstart
    from refseg.apps.quickstart_steps import plan_steps

    options = QuickstartOptions(**given(args, QuickstartOptions))
    steps = plan_steps(options)
    _print_plan(options, steps)

    def begun(step: "Step", number: int) -> None:
        commands = "".join(f"\n  $ {shlex.join(command)}" for command in step.commands)
        say(f"\n{number}/{len(steps)} {step.name}{commands}")

    with _shown(len(steps)) as (say, status):
        outcome = run_quickstart(options, begun=begun, status=status)
    _print_outcome(outcome)
    print_next("refseg", "demo", "--checkpoint", outcome.run)
    return 0


def _print_plan(options: QuickstartOptions, steps: "tuple[Step, ...]") -> None:
    print(
        "This draws scenes of shapes, trains a small model on them, and scores it on scenes that it has not seen.\n"
        f"Nothing is downloaded, and everything is written to {options.out}/. After Ctrl-C, the same command "
        "continues.\n"
    )
    for number, step in enumerate(steps, 1):
        print(f"  {number} {step.name:<11} {step.what:<66} {duration(step.seconds):>6}")
    print(
        f"    {'in all':<78} {duration(sum(step.seconds for step in steps)):>6}\n\n"
        f"The times are for two idle cores. The output of the commands goes to {options.out}/logs/.",
        flush=True,
    )


@contextmanager
def _shown(num_steps: int) -> "Iterator[tuple[Callable[[str], None], Callable[[Status], None]]]":
    """Yield a function that prints a line and one that shows the status.

    On a terminal the status is a bar. Elsewhere it is a line on stderr, at most one every `SECONDS_BETWEEN_LINES`.
    """
    if not sys.stderr.isatty():
        last_line = time.monotonic()

        def log_line(status: "Status") -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                sys.stderr.write(f"  {_state(status, num_steps)}, {duration(status.left)} left in all\n")

        yield lambda text: print(text, flush=True), log_line
        return
    from tqdm import tqdm

    with tqdm(bar_format="  {desc} |{bar:30}| {postfix}", total=1.0, leave=False) as bar:

        def move_bar(status: "Status") -> None:
            bar.n = status.elapsed / max(1.0, status.elapsed + status.left)
            bar.set_description_str(_state(status, num_steps), refresh=False)
            bar.set_postfix_str(f"{duration(status.left)} left in all")

        yield lambda text: tqdm.write(text, file=sys.stdout), move_bar


def _state(status: "Status", num_steps: int) -> str:
    share = "" if status.share is None else f", {status.share:.0%}"
    return f"{status.number}/{num_steps} {status.step.name}, {duration(status.seconds)}{share}"


def duration(seconds: float) -> str:
    """Format a duration: whole seconds below 100 s (`45 s`), whole minutes from there on (`12 min`)."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _print_outcome(outcome: "Outcome") -> None:
    iou = {name: scored["scores"]["oIoU"] for name, scored in outcome.scores.items()}
    seconds = sum(outcome.seconds.values())
    by_step = ", ".join(f"{name} {number:.0f}" for name, number in outcome.seconds.items())
    print(f"""
Done in {seconds / 60:.1f} minutes, {outcome.cpu_seconds / 60:.1f} minutes of processor time. Seconds of each step:
{by_step}.

  oIoU, unseen scenes ({outcome.scores["val"]["num_sentences"]:,} sentences)         {iou["val"]:.3f}
  oIoU, sentences shuffled within each image   {iou["val-shuffled"]:.3f}   {_share(iou["val-shuffled"], iou["val"])}
  oIoU, testA (no relations)                   {iou["testA"]:.3f}
  oIoU, testB (relations only)                 {iou["testB"]:.3f}

  report       {(outcome.run / "report.html").resolve()}
  dataset      {outcome.browse.resolve()}
  prediction   {outcome.predictions.resolve()}

The model has seen drawn shapes alone, in which each object named has a twin that shares the named shape or colour. Its
mask of a photograph shows that the path works, not that the model understands photographs. The way from your pictures
to masks is described in docs/your-own-data.md; `source .venv/bin/activate` puts refseg on the path.""")


def _share(control: float, own: float) -> str:
    """Compare the score on shuffled sentences with the model's own score.

    A model that ignores the sentence has the same score on both, so the share is then near 100 %. The sentences count
    as read when the share is below one third.
    """
    if own == 0:
        return "nothing is learnt yet"
    verdict = "the sentences are read" if 3 * control < own else "the sentences are hardly read yet"
    return f"{control / own:.0%} of the score: {verdict}"
