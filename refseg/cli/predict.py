"""`refseg predict`: mask and overlay for an image and a sentence."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg.addresses import path_argument

if TYPE_CHECKING:
    from refseg.evaluation.explanation import SentenceExplanation

EXAMPLE = """refseg predict photo.jpg "the woman in the red coat" --checkpoint runs/toy --out predictions
  refseg predict photo.jpg "the woman in the red coat" --checkpoint runs/toy --explain"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image",
        type=path_argument,
        metavar="IMAGE",
        help="any image: JPEG, PNG, WebP, ...; turned upright as its EXIF says",
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="what to find; several share one pass over the image")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="RUN",
        help="a run's folder, a checkpoint's, or what `refseg publish` wrote",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("predictions"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also say what the model looked at: words by attention, weights of the emphases, heat maps",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import numpy as np
    import torch
    from PIL import Image

    from refseg.apps.predict import segment

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prediction = segment(args.checkpoint, args.image, args.texts, device=device, explain=args.explain)
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, text in enumerate(prediction.texts):
        stem = args.image.stem if len(prediction.texts) == 1 else f"{args.image.stem}-{number + 1}"
        mask, overlay = args.out / f"{stem}.mask.png", args.out / f"{stem}.overlay.png"
        pictures = {mask: prediction.masks[number].astype(np.uint8) * 255, overlay: prediction.overlay(number)}
        entry: dict[str, Any] = {
            "text": text,
            "covered_share": prediction.covered_shares[number],
            "box_xywh": prediction.boxes_xywh[number],
            "mask": str(mask),
            "overlay": str(overlay),
        }
        if args.explain:
            entry["explanation"] = prediction.explanations[number].to_json()
            heat_maps = prediction.explanation_picture(number)
            if heat_maps is not None:
                path = args.out / f"{stem}.explain.png"
                pictures[path] = heat_maps
                entry["explanation"]["heat_maps"] = str(path)
        for path, pixels in pictures.items():
            aside = path.with_name(f".{path.name}.part")
            Image.fromarray(pixels).save(aside, "PNG")
            aside.replace(path)
        found.append(entry)
    if args.json:
        height, width = prediction.picture.shape[:2]
        print(json.dumps({"image": str(args.image), "height": height, "width": width, "predictions": found}, indent=1))
        return 0
    for number, entry in enumerate(found):
        box = entry["box_xywh"]
        where = "found nothing" if box is None else f"{entry['covered_share']:.1%} of the picture, box_xywh {box}"
        print(f"{entry['text']}: {where}")
        print(f"  mask    {entry['mask']}\n  overlay {entry['overlay']}")
        if args.explain:
            _print_explanation(entry["explanation"], prediction.explanations[number])
    return 0


def _print_explanation(printed: dict[str, Any], explanation: "SentenceExplanation") -> None:
    table = explanation.table()
    if "heat_maps" in printed:
        print(f"  explain {printed['heat_maps']}")
    elif not table:
        print("  explain this model was built without the parts that could be shown")
    for line in table.splitlines():
        print(f"    {line}")
