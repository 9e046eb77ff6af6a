"""`refseg stats`: counts against the published ones, lengths, areas, rejects."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.stats import DatasetStats

EXAMPLE = "refseg stats shards/refcoco-unc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the dataset's folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from pipelines.stats import stats_dataset

    stats = stats_dataset(args.folder)
    if args.json:
        print(json.dumps(asdict(stats), indent=1))
    else:
        print(_page(stats))
    return 0


def _page(stats: "DatasetStats") -> str:
    lines = [f"{stats.dataset}, masks by {stats.mask_rule}, digest {stats.digest[:12]}", ""]
    lines.append(f"{'split':<6} {'':<10} {'found':>9} {'published':>10}")
    for split in stats.splits:
        for name, found in asdict(split.counts).items():
            published = getattr(split.published, name) if split.published else None
            mark = "  differs" if name in split.differing else ""
            shown = "-" if published is None else f"{published:,}"
            lines.append(f"{split.split:<6} {name:<10} {found:>9,} {shown:>10}{mark}")
    lines += ["", "a sentence has (mean / 95 % have at most / longest)"]
    for split in stats.splits:
        words, tokens = (f"{x.mean:.2f} / {x.p95} / {x.longest}" for x in (split.words, split.tokens))
        over = ", ".join(f">{limit}: {count:,}" for limit, count in split.longer_than.items())
        lines.append(f"{split.split:<6} words {words}; tokens {tokens} ({over})")
    lines += ["", "part of the image a target covers, by quantile"]
    for split in stats.splits:
        areas = ", ".join(f"{q:.0%}: {part:.2%}" for q, part in split.area_quantiles.items())
        lines.append(f"{split.split:<6} {areas or 'no target'}")
    lines.append("")
    for split in stats.splits:
        lines.append(
            f"{split.split:<6} {split.refs_per_image:.2f} refs an image, "
            f"{split.sentences_per_ref:.2f} sentences a ref, {split.num_no_target:,} refs without a target"
        )
    lines += ["", f"rejects: {sum(stats.rejects.values()):,}"]
    lines += [f"  {reason}: {count:,}" for reason, count in stats.rejects.items()]
    return "\n".join(lines)
