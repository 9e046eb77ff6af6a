"""`refseg models`: shows the cost of each model by part, and the published figures."""

import argparse
import json

from refseg.apps.options import CostOptions
from refseg.cli.options import add_json, add_options, given

EXAMPLE = "refseg models --input-size 480 416 --parts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser, CostOptions, input_sizes={"flag": "--input-size", "metavar": "PX"}, models={"flag": "--model"},
        encoders={"flag": "--encoder"},
    )  # fmt: skip
    parser.add_argument("--parts", action="store_true", help="also show parameters and GMAC of each part")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.cost_table import PUBLISHED, count_costs

    options = CostOptions(**given(args, CostOptions))
    rows = count_costs(options)
    if args.json:
        print(json.dumps({"num_tokens": options.num_tokens, "models": [row.to_json() for row in rows]}, indent=1))
        return 0
    print(
        f"A sentence has {options.num_tokens} tokens. Parameters: each tensor is counted once. G: 10^9\n"
        "multiply-accumulates of convolutions, linear layers and attention. 'image' is computed once for all\n"
        "sentences of an image.\n"
    )
    print(f"{'model':9} {'image encoder':15} {'side':>4} {'params M':>9} {'image G':>8} {'text G':>7} {'pair G':>7} "
          f"{'one G':>7} {'of 7 G':>7}  published")  # fmt: skip
    for row in rows:
        cost = row.cost
        macs = (cost.image_macs, cost.text_macs, cost.expression_macs, cost.total_macs, cost.macs_per_expression(7.0))
        image, text, pair, one, of_seven = (number / 1e9 for number in macs)
        print(
            f"{row.model:9} {row.image_encoder:15} {row.input_size:>4} {cost.total_parameters / 1e6:>9.3f} "
            f"{image:>8.2f} {text:>7.2f} {pair:>7.2f} {one:>7.2f} {of_seven:>7.2f}  {row.published or ''}".rstrip()
        )
    print("\n'one': an image with one sentence. 'of 7': one of seven sentences of the same image.")
    for (name, encoder), (figures, meaning) in PUBLISHED.items():
        print(f"{name} {encoder}, {figures}: {meaning}")
    if args.parts:
        for row in rows:
            print(f"\n{row.model} {row.image_encoder} {row.input_size}")
            for part, macs_of_part in row.cost.macs.items():
                print(f"  {part:20}{row.cost.parameters.get(part, 0):>14,}{macs_of_part / 1e9:>10.3f} G")
    return 0
