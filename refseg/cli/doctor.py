"""`refseg doctor`: times the stages of loading on this machine, names the bottleneck and suggests remedies."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from refseg.addresses import address_argument
from refseg.cli.options import add_json, add_options, given
from refseg.cli.plan import NOT_ASKED
from refseg.errors import UsageError
from refseg.reading import Reading
from refseg.wording import counted

if TYPE_CHECKING:
    from refseg.apps.doctor import Diagnosis, Measured
    from refseg.config import Recipe
    from refseg.data.index import ManifestIndex

EXAMPLE = """refseg doctor shards/refcoco-unc --recipe fcnet-refcoco-r101
  refseg doctor shards/refcoco-unc --batch 32 --workers 8 --samples-per-second 400
  refseg doctor --env"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=address_argument, metavar="DIR", help="the dataset's folder, or its URL"
    )
    parser.add_argument("--env", action="store_true", help="print versions, cores, GPUs and the disk's speed instead")
    parser.add_argument("--recipe", metavar="RECIPE", help="recipe whose settings are used and whose model is timed")
    add_options(
        parser, Reading, leave_out=("geometry", "remainder", *NOT_ASKED),
        global_batch={"flag": "--batch", "required": False, "help": "samples of one process in a step (default: 32)"},
        num_workers={"flag": "--workers", "help": "data.num_workers (default: 2)"},
    )  # fmt: skip
    parser.add_argument("--split", metavar="NAME", help="split to read (default: train)")
    parser.add_argument(
        "--samples-per-second", type=float, metavar="X", help="speed of one process's model, if it is known"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="time to measure the loader (default: 5)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.env:
        return _environment(args)
    if args.folder is None:
        raise UsageError("found no DIR; expected a dataset's folder, or --env")
    _check_numbers(args)
    from dataclasses import asdict

    from refseg.apps.doctor import diagnose, examine
    from refseg.config import load_recipe
    from refseg.data.index import ManifestIndex

    recipe = load_recipe(args.recipe, [f"data.root={json.dumps(args.folder)}"]) if args.recipe is not None else None
    split = args.split or (recipe.data.train_split if recipe else "train")
    index = ManifestIndex.open(args.folder, [split])
    reading = _reading(args, recipe)
    if getattr(args, "global_batch", 0) > (samples := _samples(index, reading.sampling)):
        raise UsageError(
            f"--batch {args.global_batch}: expected at most {samples}, the number of samples by {reading.sampling} in "
            f"{split} of {index.folder}"
        )
    found = examine(index, reading, seconds=args.seconds, needed=args.samples_per_second, recipe=recipe)
    diagnosis = diagnose(found)
    if args.json:
        facts = {
            "worker_seconds": found.worker_seconds,
            "rate_of_all_cores": found.rate(found.num_cores),
            "cache_gigabytes": found.cache_gigabytes,
            "rate_of_all_cores_if_cached": found.if_cached.rate(found.num_cores),
        }
        print(json.dumps({**asdict(found), **facts, **asdict(diagnosis)}, indent=1))
    else:
        print(f"{index.descriptor.dataset} {split}, {reading.global_batch} samples by {reading.sampling} in a batch")
        if recipe and recipe.data.decode == "device":
            print('data.decode = "device" is not timed; workers decode here')
        print(_page(found, diagnosis))
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse impossible values, with the option's name, before any file is read."""
    limits: dict[str, tuple[str, float, bool]] = {
        "global_batch": ("--batch", 1, True),
        "num_workers": ("--workers", 0, True),
        "cache_gigabytes": ("--cache-gigabytes", 0, True),
        "samples_per_second": ("--samples-per-second", 0, False),
        "seconds": ("--seconds", 0, False),
    }
    for name, (flag, limit, is_allowed) in limits.items():
        found = getattr(args, name, None)
        if found is None or (math.isfinite(found) and (found > limit or (is_allowed and found == limit))):
            continue
        raise UsageError(f"{flag} {found}: expected a number {'of at least' if is_allowed else 'above'} {limit}")


def _reading(args: argparse.Namespace, recipe: "Recipe | None") -> Reading:
    """Return the reading from the command line, then the recipe, then defaults."""
    import torch

    found = given(args, Reading)
    if recipe is None:
        return Reading(**{"global_batch": 32, "num_workers": 2} | found)
    if found.get("input_size", recipe.data.input_size) != recipe.data.input_size:
        raise UsageError("found --input-size and --recipe, whose model has another input size; give one of them")
    share = max(1, recipe.train.global_batch // max(1, torch.cuda.device_count()))
    return Reading.of(recipe.data, **{"global_batch": share} | found | {"decode": "cpu"})


def _samples(index: "ManifestIndex", sampling: str) -> int:
    numbers = {"ref": index.num_rows, "sentence": index.num_sentences, "images": index.num_images}
    return numbers[sampling]


def _environment(args: argparse.Namespace) -> int:
    from refseg.apps.environment import describe_environment

    facts = describe_environment(Path(args.folder) if args.folder else Path.cwd())
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key.replace('_', ' ')} {part}" for key, part in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"{name.replace('_', ' '):<24} {value}")
    return 0


def _page(found: "Measured", diagnosis: "Diagnosis") -> str:
    lines = ["", f"{'stage':<20} {'ms a sample':>12} {'a second on a core':>20}"]
    for name, seconds in found.stages.items():
        rate = f"{1 / seconds:,.0f}" if seconds else "-"
        lines.append(f"{name:<20} {1e3 * seconds:>12.3f} {rate:>20}")
    lines.append(f"{'all a worker does':<20} {1e3 * found.worker_seconds:>12.3f} {1 / found.worker_seconds:>20,.1f}")
    lines.append("")
    if found.disk_read is not None:
        lines.append(f"read from the disk itself: {1e3 * found.disk_read:.3f} ms a sample")
    if found.expressions > 1:
        lines.append(f"expressions: {found.expressions:.2f} a sample")
    lines.append(f"measured: {found.delivered:,.1f} samples/s from {counted(found.num_workers, 'worker')}")
    lines.append(f"expected of {counted(found.num_cores, 'core')}: {found.rate(found.num_cores):,.1f} samples/s")
    if found.cached_share:
        lines.append(f"  {100 * found.cached_share:.0f} % of the images come from the cache of decoded images")
    if found.cached_share < 1:
        cached = found.if_cached.rate(found.num_cores)
        lines.append(
            f"  {cached:,.1f} with data.cache_gigabytes = {found.cache_gigabytes} from the second epoch, if the cache "
            "fits into the system's memory"
        )
    lines.append(f"bottleneck: {diagnosis.bottleneck}")
    lines.append(f"  {diagnosis.verdict}")
    lines += [f"  - {remedy}" for remedy in diagnosis.remedies]
    return "\n".join(lines)
