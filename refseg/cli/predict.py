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
        help="folder to write to (default: %(default)s); results are named after the image, and a name that holds "
        "another result gets a number",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also say what the model looked at: words by attention, weights of the emphases, heat maps",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import torch

    from refseg.apps.predict import segment
    from refseg.apps.predict_files import write_prediction
    from refseg.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(args.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    prediction = segment(checkpoint, args.image, args.texts, explain=args.explain)
    found = []
    for number, files in enumerate(write_prediction(args.out, args.image, prediction, checkpoint)):
        entry: dict[str, Any] = {
            "text": prediction.texts[number],
            "covered_share": prediction.covered_shares[number],
            "box_xywh": prediction.boxes_xywh[number],
            "mask": str(files.mask),
            "overlay": str(files.overlay),
        }
        if args.explain:
            entry["explanation"] = prediction.explanations[number].to_json()
            if files.explain is not None:
                entry["explanation"]["heat_maps"] = str(files.explain)
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
