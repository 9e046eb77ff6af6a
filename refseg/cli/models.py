"""`refseg models`: what each model costs, by part, beside the published figures."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from refseg.models.cost import Cost

EXAMPLE = "refseg models --input-size 480 416 --parts"

PUBLISHED = {
    ("fcnet", "clip_resnet101"): (
        "190.04 M, 84.05 G",
        "FCNet, Table 5. The operations fit ResNet-101 at 480; the parameters are those of our Swin-Base.",
    ),
    ("cris", "clip_resnet101"): (
        "188.85 M, 79.45 G",
        "CRIS's row of FCNet's Table 5. The operations fit ResNet-101 at 416; the parameters fit CRIS with Swin-Base.",
    ),
    ("cris", "clip_resnet50"): ("146.85 M", "CRIS's own count of parameters, with the token embedding."),
}
"""Printed figures and what they are, as far as counting again can tell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input-size",
        type=int,
        nargs="+",
        default=[480],
        metavar="PX",
        help="sides of the input, multiples of 32 (default: 480)",
    )
    parser.add_argument("--model", nargs="+", metavar="NAME", help="some architectures (default: all)")
    parser.add_argument("--encoder", nargs="+", metavar="NAME", help="some image encoders (default: all)")
    parser.add_argument("--num-tokens", type=int, default=17, metavar="N", help="token ids of a sentence (default: 17)")
    parser.add_argument("--parts", action="store_true", help="also parameters and GMAC of each part")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from pydantic import TypeAdapter

    from refseg.errors import UsageError
    from refseg.model_config import MODEL_CONFIGS, ImageEncoderName, ModelConfig
    from refseg.models.cost import count_cost
    from refseg.wording import did_you_mean

    for side in args.input_size:
        if side < 32 or side % 32:
            raise UsageError(f"--input-size: found {side}, expected a multiple of 32, such as 480")
    if not 3 <= args.num_tokens <= 77:
        raise UsageError(f"--num-tokens: found {args.num_tokens}, expected 3 to 77")
    known = {"model": tuple(MODEL_CONFIGS), "encoder": get_args(ImageEncoderName)}
    chosen = {option: getattr(args, option) or names for option, names in known.items()}
    for option, names in known.items():
        for name in chosen[option]:
            if name not in names:
                hint = did_you_mean(name, names)
                raise UsageError(f"--{option}: found {name}, expected some of {', '.join(names)}{hint}")
    section: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
    rows = [
        (name, encoder, side, count_cost(section.validate_python({"name": name, "image_encoder": encoder}),
                                         input_size=(side, side), num_tokens=args.num_tokens))
        for name in chosen["model"] for encoder in chosen["encoder"] for side in args.input_size
    ]  # fmt: skip
    if args.json:
        print(json.dumps({"num_tokens": args.num_tokens, "models": [_to_dict(*row) for row in rows]}, indent=1))
        return 0
    print(
        f"A sentence has {args.num_tokens} tokens. Parameters: every tensor once. G: 10^9 multiply-accumulates of\n"
        "convolutions, linear layers and attention; 'image' is done once for all sentences of an image.\n"
    )
    print(f"{'model':9} {'image encoder':15} {'side':>4} {'params M':>9} {'image G':>8} {'text G':>7} {'pair G':>7} "
          f"{'one G':>7} {'of 7 G':>7}  published")  # fmt: skip
    for name, encoder, side, cost in rows:
        giga = (cost.image_macs, cost.text_macs, cost.expression_macs, cost.total_macs, cost.macs_per_expression(7.0))
        print(f"{name:9} {encoder:15} {side:>4} {cost.total_parameters / 1e6:>9.3f} "
              f"{giga[0] / 1e9:>8.2f} {giga[1] / 1e9:>7.2f} {giga[2] / 1e9:>7.2f} {giga[3] / 1e9:>7.2f} "
              f"{giga[4] / 1e9:>7.2f}  {PUBLISHED.get((name, encoder), ('',))[0]}".rstrip())  # fmt: skip
    print("\n'one': an image with one sentence. 'of 7': each of seven sentences that share an image.")
    for (name, encoder), (figures, meaning) in PUBLISHED.items():
        print(f"{name} {encoder}, {figures}: {meaning}")
    if args.parts:
        for name, encoder, side, cost in rows:
            print(f"\n{name} {encoder} {side}")
            for part in cost.macs:
                print(f"  {part:20}{cost.parameters.get(part, 0):>14,}{cost.macs[part] / 1e9:>10.3f} G")
    return 0


def _to_dict(name: str, encoder: str, side: int, cost: "Cost") -> dict[str, Any]:
    return {
        "model": name,
        "image_encoder": encoder,
        "input_size": side,
        "total_parameters": cost.total_parameters,
        "total_macs": cost.total_macs,
        **dataclasses.asdict(cost),
        "published": PUBLISHED.get((name, encoder), (None,))[0],
    }
