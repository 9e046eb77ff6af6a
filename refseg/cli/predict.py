"""`refseg predict`: writes masks and overlays for pictures and sentences."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from refseg.apps.options import PredictOptions
from refseg.cli.options import add_json, add_options, given
from refseg.exits import print_error

if TYPE_CHECKING:
    from refseg.apps.predict_files import PictureResult

EXAMPLE = """refseg predict photo.jpg --text "the woman in the red coat" --checkpoint runs/toy --out predictions
  refseg predict photo.jpg photos/ https://example.org/a.jpg --text "the cat" "the left cup" --checkpoint runs/toy
  refseg predict photo.jpg --text "the woman in the red coat" --checkpoint runs/toy --explain"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser, PredictOptions, positional=("images",), images={"metavar": "IMAGE"},
        texts={"flag": "--text", "metavar": "TEXT"}, checkpoint={"metavar": "RUN"}, out={"metavar": "DIR"},
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.predict_files import predict_pictures

    entries = []
    exit_code = 0
    for result in predict_pictures(PredictOptions(**given(args, PredictOptions))):
        if result.error:
            exit_code = 1
        if args.json:
            entries.append(_entry(result))
        elif result.error:
            print_error(result.error)
        else:
            _print(result)
    if args.json:
        print(json.dumps({"pictures": entries}, indent=1))
    return exit_code


def _entry(result: "PictureResult") -> dict[str, Any]:
    """Return the result of one picture as values for JSON."""
    prediction = result.prediction
    if prediction is None:
        return {"image": result.image, "error": result.error}
    height, width = prediction.picture.shape[:2]
    found = []
    for number, files in enumerate(result.files):
        entry: dict[str, Any] = {
            "text": prediction.texts[number],
            "covered_share": prediction.covered_shares[number],
            "box_xywh": prediction.boxes_xywh[number],
            "mask": str(files.mask),
            "overlay": str(files.overlay),
        }
        if prediction.explanations:
            entry["explanation"] = prediction.explanations[number].to_json()
            if files.explain is not None:
                entry["explanation"]["heat_maps"] = str(files.explain)
        found.append(entry)
    return {"image": result.image, "height": height, "width": width, "predictions": found}


def _print(result: "PictureResult") -> None:
    prediction = result.prediction
    assert prediction is not None
    print(result.image)
    for number, files in enumerate(result.files):
        box = prediction.boxes_xywh[number]
        share = prediction.covered_shares[number]
        where = "found nothing" if box is None else f"{share:.1%} of the picture, box_xywh {box}"
        print(f"  {prediction.texts[number]}: {where}")
        print(f"    mask    {files.mask}\n    overlay {files.overlay}")
        if prediction.explanations:
            table = prediction.explanations[number].table()
            if files.explain is not None:
                print(f"    explain {files.explain}")
            elif not table:
                print("    explain this model has no parts that can be shown")
            for line in table.splitlines():
                print(f"      {line}")
