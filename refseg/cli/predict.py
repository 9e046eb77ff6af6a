"""`refseg predict`: mask and overlay for an image and a sentence."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from refseg.apps.options import PredictOptions
from refseg.cli.options import add_json, add_options, given

if TYPE_CHECKING:
    from refseg.evaluation.explanation import SentenceExplanation

EXAMPLE = """refseg predict photo.jpg "the woman in the red coat" --checkpoint runs/toy --out predictions
  refseg predict photo.jpg "the woman in the red coat" --checkpoint runs/toy --explain"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser, PredictOptions, positional=("image", "texts"), image={"metavar": "IMAGE"}, texts={"metavar": "TEXT"},
        checkpoint={"metavar": "RUN"}, out={"metavar": "DIR"},
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.predict_files import predict_to_files

    options = PredictOptions(**given(args, PredictOptions))
    prediction, written = predict_to_files(options)
    found = []
    for number, files in enumerate(written):
        entry: dict[str, Any] = {
            "text": prediction.texts[number],
            "covered_share": prediction.covered_shares[number],
            "box_xywh": prediction.boxes_xywh[number],
            "mask": str(files.mask),
            "overlay": str(files.overlay),
        }
        if options.explain:
            entry["explanation"] = prediction.explanations[number].to_json()
            if files.explain is not None:
                entry["explanation"]["heat_maps"] = str(files.explain)
        found.append(entry)
    if args.json:
        height, width = prediction.picture.shape[:2]
        print(
            json.dumps({"image": str(options.image), "height": height, "width": width, "predictions": found}, indent=1)
        )
        return 0
    for number, entry in enumerate(found):
        box = entry["box_xywh"]
        where = "found nothing" if box is None else f"{entry['covered_share']:.1%} of the picture, box_xywh {box}"
        print(f"{entry['text']}: {where}")
        print(f"  mask    {entry['mask']}\n  overlay {entry['overlay']}")
        if options.explain:
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
