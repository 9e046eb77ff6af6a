"""`refseg build-shards`: annotations and images to verified shards."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from refseg.addresses import address_argument
from refseg.cli.png_options import add_png_options, read_png_rule
from refseg.errors import UsageError
from refseg.wording import counted

if TYPE_CHECKING:
    from pipelines.build import BuildResult
    from refseg.dataset.descriptor import Descriptor

EXAMPLE = "refseg build-shards refcoco/unc --annotations data/refer --images data/coco --out shards/refcoco-unc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="with its partition: refcoco/unc, refcocog/umd, ...")
    parser.add_argument(
        "--annotations",
        required=True,
        type=address_argument,
        metavar="DIR",
        help="folder in REFER's layout: refcoco/, refcoco+/, ... with refs(...).p or .json and instances.json; "
        "or a folder with your own table of sentences; path or URL",
    )
    parser.add_argument(
        "--images",
        type=address_argument,
        metavar="DIR",
        help="the JPEGs or a COCO layout of them, path or URL (default: beside the annotations)",
    )
    parser.add_argument(
        "--images-from",
        nargs="+",
        default=(),
        type=address_argument,
        metavar="DIR",
        help="finished datasets: images that are there are pointed to, not written again",
    )
    parser.add_argument(
        "--out", type=address_argument, required=True, metavar="DIR", help="the dataset's own folder, path or URL"
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all that have refs)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core); same bytes with any"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="build shards in processes of this machine or on the Ray cluster at RAY_ADDRESS (default: %(default)s)",
    )
    parser.add_argument("--images-per-shard", type=int, default=512, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of images (default: %(default)s)"
    )
    parser.add_argument(
        "--mask-rule",
        choices=("union", "legacy"),
        default="union",
        help="of several parts: their union, or pixels of exactly one part, as LAVT has it (default: %(default)s)",
    )
    add_png_options(parser)
    parser.add_argument(
        "--on-bad-sample",
        choices=("fail", "skip"),
        default="fail",
        help="fail: faults end the build; skip: faulty refs go to rejects.parquet (default: %(default)s)",
    )
    parser.add_argument("--max-bad", type=int, metavar="N", help="with skip: more faulty refs end the build")
    parser.add_argument(
        "--check-images",
        choices=("decode", "header"),
        default="decode",
        help="decode each image whole, or look at its size and end alone (default: %(default)s)",
    )
    parser.add_argument(
        "--store",
        metavar="GEOMETRY:SIZE",
        help="store pictures at training size, letterbox:480 or stretch:480x640: lossy, recorded, decoded faster "
        "(default: the source's bytes)",
    )
    parser.add_argument(
        "--store-quality", type=int, default=95, metavar="Q", help="with --store: of the JPEGs (default: %(default)s)"
    )
    parser.add_argument(
        "--on-shared-images",
        choices=("warn", "refuse"),
        default="warn",
        help="the same picture (equal bytes) in several splits or under several ids is reported, or ends the build "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--accept-counts",
        action="store_true",
        help="build although refs, sentences or images are not as many as published; the dataset says so",
    )
    parser.add_argument(
        "--stage",
        choices=("all", "plan", "shards", "finalize"),
        default="all",
        help="for a cluster: plan once, shards in many tasks, finalize once (default: %(default)s)",
    )
    parser.add_argument(
        "--task-index",
        type=int,
        metavar="I",
        help="with --stage shards: this task's number, from 0 (default: Slurm's array task, else 0)",
    )
    parser.add_argument(
        "--task-count",
        type=int,
        metavar="N",
        help="with --stage shards: how many tasks there are (default: Slurm's array, else 1)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pipelines.build import build_dataset
    from pipelines.options import BuildOptions

    task_index, task_count = _task(args)
    options = BuildOptions(
        dataset=args.dataset,
        annotations=args.annotations,
        out=args.out,
        images=args.images,
        images_from=tuple(args.images_from),
        splits=tuple(args.splits) if args.splits else None,
        workers=args.workers,
        engine=args.engine,
        images_per_shard=args.images_per_shard,
        seed=args.seed,
        mask_rule=args.mask_rule,
        png_rule=read_png_rule(args),
        check_images=args.check_images,
        store=args.store,
        store_quality=args.store_quality,
        on_bad_sample=args.on_bad_sample,
        max_bad=args.max_bad,
        on_shared_images=args.on_shared_images,
        accept_counts=args.accept_counts,
        stage=args.stage,
        task_index=task_index,
        task_count=task_count,
    )
    with _sigterm_unwinds():
        if sys.stderr.isatty():
            with tqdm(unit=" images", desc=args.dataset, leave=False) as bar:

                def show(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                result = build_dataset(options, progress=show)
        else:
            result = build_dataset(options)
    if result.descriptor is None:
        _print_stage(args, result)
    else:
        _print_dataset(args, result.descriptor, was_complete=result.was_complete)
    return 0


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM, with which schedulers take a machine back, end workers and remove temporaries as Ctrl-C does."""
    is_ended = False

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        nonlocal is_ended
        is_ended = True
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:
        # Ray, if it was waiting, makes another exit code of it.
        raise SystemExit(128 + signal.SIGTERM if is_ended else error.code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _task(args: argparse.Namespace) -> tuple[int, int]:
    """This task's number from 0 and the number of tasks: as told, else as Slurm's array has it."""
    if args.stage != "shards" and (args.task_index is not None or args.task_count is not None):
        raise UsageError(f"--task-index and --task-count are for --stage shards, found --stage {args.stage}")
    if (args.task_index is None) != (args.task_count is None):
        raise UsageError("--task-index and --task-count go together: give both or, under Slurm, neither")
    if args.task_index is not None:
        return args.task_index, args.task_count
    if args.stage == "shards" and "SLURM_ARRAY_TASK_ID" in os.environ:
        number, count = _slurm("ID", None), _slurm("COUNT", 1)
        first = _slurm("MIN", 0)
        last = _slurm("MAX", first + count - 1)
        step = (last - first) // (count - 1) if count > 1 else 1
        if first + step * (count - 1) != last or (number - first) % step:
            raise UsageError(
                f"Slurm's array has gaps (task {number}, {count} tasks from {first} to {last}), so parts would be left "
                "out; submit the whole array again (what is built is not built again), or give --task-index and "
                "--task-count"
            )
        return (number - first) // step, count
    return 0, 1


def _slurm(name: str, default: int | None) -> int:
    """One of Slurm's array variables."""
    variable = f"SLURM_ARRAY_TASK_{name}"
    text = os.environ.get(variable) or ("" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"{variable} is {text!r}, expected a whole number; give --task-index and --task-count")
    return int(text)


def _print_stage(args: argparse.Namespace, result: "BuildResult") -> None:
    summary = {"folder": args.out, "stage": args.stage, "shards": result.num_shards, "built": result.num_built}
    if args.json:
        print(json.dumps(summary, indent=1))
    elif args.stage == "plan":
        print(
            f"{args.out}: planned: {counted(result.num_shards, 'shard')}; next: --stage shards, then --stage finalize"
        )
    else:
        print(
            f"{args.out}: built {result.num_built} of {counted(result.num_shards, 'shard')}; "
            "when all are: --stage finalize"
        )


def _print_dataset(args: argparse.Namespace, descriptor: "Descriptor", *, was_complete: bool) -> None:
    summary = {
        "dataset": descriptor.dataset,
        "folder": args.out,
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
    if args.json:
        print(json.dumps(summary, indent=1))
        return
    compared = "compared: annotations, options, names and sizes in bytes of the pictures, not their content"
    if args.stage != "all":
        compared = "compared: options"
    done = f"was finished before, nothing changed ({compared})" if was_complete else "built"
    names = ("shard", "image", "ref", "sentence", "reject")
    counts = ", ".join(counted(int(str(summary[f"{name}s"])), name) for name in names)
    pooled = f", {summary['images_in_pools']} of the images in pools" if descriptor.image_pools else ""
    print(f"{args.out}: {done}: {counts}, {int(str(summary['bytes'])) / 1e6:.1f} MB{pooled}")
