"""`refseg models`: parameters of each model by part."""

import argparse
import json

EXAMPLE = "refseg models --input-size 480"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input-size", type=int, default=480, metavar="PX", help="side of the input, a multiple of 32 (default: 480)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import torch

    from refseg.errors import UsageError
    from refseg.model_config import FCNetConfig
    from refseg.models import build_model

    if args.input_size < 32 or args.input_size % 32:
        raise UsageError(f"--input-size: found {args.input_size}, expected a multiple of 32, such as 480")
    parts: dict[str, dict[str, int]] = {}
    for encoder in ("clip_resnet50", "clip_resnet101", "swin_base", "tiny"):
        with torch.device("meta"):  # shapes alone: nothing is allocated
            model = build_model(FCNetConfig(image_encoder=encoder), input_size=(args.input_size, args.input_size))
        parts[encoder] = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    if args.json:
        rows = [
            {"model": "fcnet", "image_encoder": encoder, "total": sum(counts.values()), "parts": counts}
            for encoder, counts in parts.items()
        ]
        print(json.dumps({"input_size": args.input_size, "models": rows}, indent=1))
        return 0
    print(f"FCNet's parameters at {args.input_size} x {args.input_size}, every tensor counted once (CRIS's convention)")
    print(f"{'':18}" + "".join(f"{encoder:>16}" for encoder in parts))
    for name in next(iter(parts.values())):
        print(f"{name:18}" + "".join(f"{counts[name]:>16,}" for counts in parts.values()))
    print(f"{'total':18}" + "".join(f"{sum(counts.values()):>16,}" for counts in parts.values()))
    return 0
