"""`refseg mix`: joins built datasets without leaks."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from refseg.cli.options import add_json, add_options, given
from refseg.exits import print_next
from refseg.wording import counted

if TYPE_CHECKING:
    from refseg.dataset.descriptor import Descriptor

EXAMPLE = """refseg mix shards/refcoco-unc shards/refcocoplus-unc shards/refcocog-umd --out shards/mix-all
  refseg mix shards/refcoco-unc shards/custom-mine --weights 1 3.5 --out shards/mix-mine"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.mix import MixOptions

    add_options(parser, MixOptions, positional=("members",), weights={"metavar": "W"})
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.mix import MixOptions, mix_datasets

    result = mix_datasets(MixOptions(**given(args, MixOptions)))
    descriptor = result.descriptor
    if args.json:
        summary = {
            "dataset": descriptor.dataset,
            "folder": args.out,
            "was_complete": result.was_complete,
            "refs": sum(shard.num_refs for shard in descriptor.shards),
            "sentences": sum(shard.num_sentences for shard in descriptor.shards),
            "leaks_allowed": descriptor.leaks_allowed,
            "members": [asdict(member) for member in descriptor.mix],
            "digest": descriptor.digest,
        }
        print(json.dumps(summary, indent=1))
    else:
        print(_page(args.out, descriptor, was_complete=result.was_complete))
        print_next("refseg", "verify", args.out)
    return 0


def _page(folder: str, descriptor: "Descriptor", *, was_complete: bool) -> str:
    from refseg.lineage import describe_leaks

    done = "was already finished, nothing was changed" if was_complete else "mixed"
    num_refs = sum(shard.num_refs for shard in descriptor.shards)
    num_sentences = sum(shard.num_sentences for shard in descriptor.shards)
    width = max(len(member.dataset) for member in descriptor.mix)
    lines = [
        f"{folder}: {done}: {descriptor.dataset}, {counted(num_refs, 'ref')}, "
        f"{counted(num_sentences, 'sentence')}, "
        f"digest {descriptor.digest:.12}",
        "",
        f"{'dataset':<{width}} {'weight':>7} {'refs':>9} {'dropped':>9}   training images that are in other splits",
    ]
    for member in descriptor.mix:
        shared = member.dropped_images + member.leaked_images
        kind = "kept" if descriptor.leaks_allowed else "dropped"
        where = ", ".join(f"{split} {number:,}" for split, number in member.found_in.items())
        lines.append(
            f"{member.dataset:<{width}} {member.weight:>7g} {member.num_refs:>9,} {member.dropped_refs:>9,}   "
            + (f"{shared:,} {kind}: {where}" if shared else "none")
        )
    if descriptor.leaks_allowed:
        lines += [
            "",
            f"LEAKS ALLOWED: {describe_leaks(descriptor.leaks)}. Checkpoints and reports will state this; "
            "scores on these splits do not measure performance on new images.",
        ]
    return "\n".join(lines)
