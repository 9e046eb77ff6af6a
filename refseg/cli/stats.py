"""`refseg stats`: shows counts and the published counts, lengths, areas and rejects of a built dataset."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from refseg.cli.options import add_json, add_options, given
from refseg.wording import counted

if TYPE_CHECKING:
    from pipelines.stats import DatasetStats

EXAMPLE = """refseg stats shards/refcoco-unc
  refseg stats s3://bucket/refcoco-unc --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.stats import stats_dataset

    add_options(parser, stats_dataset, positional=("folder",))
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.stats import stats_dataset

    stats = stats_dataset(**given(args, stats_dataset))
    if args.json:
        print(json.dumps(asdict(stats), indent=1))
    else:
        print(_page(stats))
    return 0


def _page(stats: "DatasetStats") -> str:
    lines = [f"{stats.dataset}, masks by {stats.mask_rule}, digest {stats.digest[:12]}", ""]
    lines.append(f"{'split':<6} {'':<10} {'found':>9} {'source':>9} {'published':>10}")
    for split in stats.splits:
        for name, found in asdict(split.counts).items():
            source, published = (
                "-" if getattr(counts, name, None) is None else f"{getattr(counts, name):,}"
                for counts in (split.source, split.published)
            )
            mark = ("  differs, accepted" if stats.counts_accepted else "  differs") if name in split.differing else ""
            lines.append(f"{split.split:<6} {name:<10} {found:>9,} {source:>9} {published:>10}{mark}")
    for member in stats.members:
        counts = member.counts
        lines.append(
            f"{member.dataset}, weight {member.weight:g}: {counted(counts.images or 0, 'image')}, "
            f"{counted(counts.refs or 0, 'ref')}, {counted(counts.sentences or 0, 'sentence')}; "
            f"{counted(member.dropped_refs, 'ref')} of {counted(member.dropped_images, 'image')} dropped, "
            f"{counted(member.leaked_images, 'leaked image')}"
        )
    if stats.pools:
        num_pool_images = sum(split.num_pool_images for split in stats.splits)
        pools = ", ".join(f"{dataset} ({path})" for dataset, path in stats.pools.items())
        lines += ["", f"{num_pool_images:,} images are in the tars of {pools}"]
    lines += ["", "length of sentences (mean / 95 % have at most / longest)"]
    for split in stats.splits:
        words, tokens = (f"{x.mean:.2f} / {x.p95} / {x.longest}" for x in (split.words, split.tokens))
        over = ", ".join(f">{limit}: {count:,}" for limit, count in split.longer_than.items())
        lines.append(f"{split.split:<6} words {words}; tokens {tokens} ({over})")
    lines += ["", "share of the image that a target covers, by quantile"]
    for split in stats.splits:
        areas = ", ".join(f"{q:.0%}: {part:.2%}" for q, part in split.area_quantiles.items())
        lines.append(f"{split.split:<6} {areas or 'no target'}")
    lines.append("")
    for split in stats.splits:
        rare = {"refs without a target": split.num_no_target, "sentences that name nothing": split.num_nothing}
        rare["targets that are boxes"] = split.num_box_only
        lines.append(
            f"{split.split:<6} refs per image {split.refs_per_image:.2f}, sentences per ref "
            f"{split.sentences_per_ref:.2f}" + "".join(f", {count:,} {what}" for what, count in rare.items() if count)
        )
    lines += ["", f"rejects: {sum(stats.rejects.values()):,}"]
    lines += [f"  {reason}: {count:,}" for reason, count in stats.rejects.items()]
    if shared := stats.shared_images.describe():
        lines += ["", shared]
    return "\n".join(lines)
