"""`refseg build-shards`: builds verified shards from annotations and images."""

import argparse
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from refseg.cli.options import add_json, add_options, given
from refseg.errors import UsageError
from refseg.exits import print_next
from refseg.mask_png import CHANNELS, PngRule
from refseg.progress import report_progress
from refseg.wording import counted

if TYPE_CHECKING:
    from pipelines.build import BuildResult
    from pipelines.options import BuildOptions
    from refseg.dataset.descriptor import Descriptor

EXAMPLE = "refseg build-shards refcoco/unc --annotations data/refer --images data/coco --out shards/refcoco-unc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.options import BuildOptions

    add_options(
        parser, BuildOptions, positional=("dataset",), leave_out=("png_rule",), dataset={"metavar": "DATASET"},
        splits={"metavar": "SPLIT"}, store={"metavar": "GEOMETRY:SIZE"},
    )  # fmt: skip
    add_options(parser, PngRule, prefix="mask_", channel={"choices": CHANNELS})
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.build import build_dataset
    from pipelines.options import BuildOptions

    found = given(args, BuildOptions)
    rule = PngRule(**given(args, PngRule, prefix="mask_"))
    options = BuildOptions(**found | _array_task(found), png_rule=rule)
    with _sigterm_unwinds(), report_progress(f"build {options.dataset}", "images") as progress:
        result = build_dataset(options, progress=progress)
    if result.descriptor is None:
        _print_stage(options, result, as_json=args.json)
    else:
        _print_dataset(options, result.descriptor, was_complete=result.was_complete, as_json=args.json)
    return 0


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Handle SIGTERM, which schedulers send before they end a job, like Ctrl-C: end workers, remove temporary files."""
    is_ended = False

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        nonlocal is_ended
        is_ended = True
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:
        # If the signal arrives while Ray waits, Ray changes the exit code.
        raise SystemExit(128 + signal.SIGTERM if is_ended else error.code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _array_task(found: Mapping[str, Any]) -> dict[str, int]:
    """Return this task's number (from 0) and the number of tasks from Slurm's variables; empty if they are given.

    Example: the array 10-18:4 has the tasks 10, 14 and 18, so the task 14 is number 1 of 3.
    """
    stage, num_given = found.get("stage", "all"), len({"task_index", "task_count"} & found.keys())
    if stage != "shards" and num_given:
        raise UsageError(f"--task-index and --task-count are for --stage shards, found --stage {stage}")
    if num_given == 1:
        raise UsageError("found only one of --task-index and --task-count; give both or, under Slurm, neither")
    if stage == "shards" and not num_given and "SLURM_ARRAY_TASK_ID" in os.environ:
        number, count = _slurm("ID", None), _slurm("COUNT", 1)
        first = _slurm("MIN", 0)
        last = _slurm("MAX", first + count - 1)
        step = (last - first) // (count - 1) if count > 1 else 1
        if first + step * (count - 1) != last or (number - first) % step:
            raise UsageError(
                f"Slurm's array has gaps (task {number}, {count} tasks from {first} to {last}), so some shards would "
                "not be built; submit the whole array again (finished shards are not built again), or give "
                "--task-index and --task-count"
            )
        return {"task_index": (number - first) // step, "task_count": count}
    return {}


def _slurm(name: str, default: int | None) -> int:
    """Return one of Slurm's array variables as a number."""
    variable = f"SLURM_ARRAY_TASK_{name}"
    text = os.environ.get(variable) or ("" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"{variable} is {text!r}, expected a whole number; give --task-index and --task-count")
    return int(text)


def _print_stage(options: "BuildOptions", result: "BuildResult", *, as_json: bool) -> None:
    summary = {"folder": options.out, "stage": options.stage, "shards": result.num_shards, "built": result.num_built}
    shards = counted(result.num_shards, "shard")
    if as_json:
        print(json.dumps(summary, indent=1))
    elif options.stage == "plan":
        print(f"{options.out}: planned {shards}; next: --stage shards, then --stage finalize")
    else:
        print(f"{options.out}: built {result.num_built} of {shards}; when all are built: --stage finalize")


def _print_dataset(options: "BuildOptions", descriptor: "Descriptor", *, was_complete: bool, as_json: bool) -> None:
    summary = {
        "dataset": descriptor.dataset,
        "folder": options.out,
        "was_complete": was_complete,
        "shards": len(descriptor.shards),
        "images": sum(shard.num_images for shard in descriptor.shards),
        "refs": sum(shard.num_refs for shard in descriptor.shards),
        "sentences": sum(shard.num_sentences for shard in descriptor.shards),
        "rejects": descriptor.num_rejects,
        "bytes": sum(shard.tar_bytes + shard.parquet_bytes for shard in descriptor.shards),
        "images_in_pools": sum(shard.num_images - shard.num_samples for shard in descriptor.shards),
        "counts_accepted": descriptor.counts_accepted,
        "digest": descriptor.digest,
    }
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    compared = "compared: annotations, options, and the pictures' names and sizes in bytes, but not their content"
    if options.stage != "all":
        compared = "compared: options"
    done = f"was already finished, nothing was changed ({compared})" if was_complete else "built"
    names = ("shard", "image", "ref", "sentence", "reject")
    counts = ", ".join(counted(int(str(summary[f"{name}s"])), name) for name in names)
    pooled = f", {summary['images_in_pools']} of the images in pools" if descriptor.image_pools else ""
    print(f"{options.out}: {done}: {counts}, {int(str(summary['bytes'])) / 1e6:.1f} MB{pooled}")
    print_next("refseg", "verify", options.out)
