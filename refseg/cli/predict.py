"""`refseg predict`: mask and overlay for an image and a sentence."""

import argparse
import json
from pathlib import Path

EXAMPLE = 'refseg predict photo.jpg "the woman in the red coat" --checkpoint runs/toy --out predictions'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="any image: JPEG, PNG, WebP, ...")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="what to find; several share one pass over the image")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN", help="a run's folder or a checkpoint's"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), metavar="DIR", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import numpy as np
    import torch
    from PIL import Image

    from refseg.apps.predict import segment

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prediction = segment(args.checkpoint, args.image, args.texts, device=device)
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, text in enumerate(prediction.texts):
        stem = args.image.stem if len(prediction.texts) == 1 else f"{args.image.stem}-{number + 1}"
        mask, overlay = args.out / f"{stem}.mask.png", args.out / f"{stem}.overlay.png"
        for path, pixels in (
            (mask, prediction.masks[number].astype(np.uint8) * 255),
            (overlay, prediction.overlay(number)),
        ):
            aside = path.with_name(f".{path.name}.part")
            Image.fromarray(pixels).save(aside, "PNG")
            aside.replace(path)
        found.append(
            {
                "text": text,
                "covered_share": prediction.covered_shares[number],
                "box_xywh": prediction.boxes_xywh[number],
                "mask": str(mask),
                "overlay": str(overlay),
            }
        )
    if args.json:
        height, width = prediction.picture.shape[:2]
        print(json.dumps({"image": str(args.image), "height": height, "width": width, "predictions": found}, indent=1))
        return 0
    for entry in found:
        box = entry["box_xywh"]
        where = "found nothing" if box is None else f"{entry['covered_share']:.1%} of the picture, box_xywh {box}"
        print(f"{entry['text']}: {where}")
        print(f"  mask    {entry['mask']}\n  overlay {entry['overlay']}")
    return 0
