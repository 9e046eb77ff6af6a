"""`refseg convert-weights`: converts published or other projects' encoder weights to safetensors."""

import argparse
import json

from refseg.addresses import path_argument
from refseg.wording import counted

EXAMPLE = """refseg convert-weights clip RN101.pt --out weights/clip-rn101.safetensors
  refseg convert-weights cris best_model.pth --out weights/cris-r101.safetensors
  refseg convert-weights lavt model_best_refcoco.pth --out weights/lavt-swin.safetensors --allow-namespace"""
_KINDS = ("clip", "cris", "lavt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=_KINDS,
        help="clip: OpenAI's archive; cris: a checkpoint of CRIS; lavt: a checkpoint of LAVT or Microsoft's Swin file",
    )
    parser.add_argument("file", type=path_argument, metavar="FILE", help="file to read; no code in it is executed")
    parser.add_argument("--out", type=path_argument, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument(
        "--accept-hash",
        default="",
        metavar="SHA256",
        help="clip: accept a file with this hash although OpenAI did not publish it",
    )
    parser.add_argument(
        "--allow-namespace",
        action="store_true",
        help="cris, lavt: accept a checkpoint that contains an argparse.Namespace besides the weights",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from refseg.errors import UsageError
    from refseg.models.convert import convert_weights

    if args.accept_hash and args.kind != "clip":
        raise UsageError(
            f"--accept-hash: found kind {args.kind}, whose files have no published hashes; remove the option"
        )
    if args.allow_namespace and args.kind == "clip":
        raise UsageError("--allow-namespace: an archive of CLIP contains no Namespace; remove the option")
    converted = convert_weights(
        args.kind,
        args.file,
        args.out,
        accepted_sha256=args.accept_hash,
        allow_namespace=args.allow_namespace,
    )
    if args.json:
        print(json.dumps({**asdict(converted), "out": str(converted.out)}, indent=1))
        return 0
    print(
        f"{converted.out}: {counted(converted.num_tensors, 'tensor')}, "
        f"{counted(converted.num_parameters, 'number')} in float32"
    )
    print(f"source SHA-256 {converted.source_sha256}")
    for name, count in sorted(converted.left_out.items()):
        print(f"left out: {name} ({count})")
    return 0
