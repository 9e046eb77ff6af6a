"""Draws the README's picture and prints the learning curve of a trained toy run.

Usage: .venv/bin/python scripts/draw_readme.py runs/toy data/toy/images/train2014/IMAGE.jpg "TEXT" ["TEXT" ...]
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from refseg.apps.predict import segment
from refseg.training.run_files import read_metrics

SCALE, CAPTION = 320, 30


def main(run: Path, image: Path, texts: list[str]) -> None:
    """Write docs/example.png with one panel for each text, and print the curve as a Markdown table."""
    prediction = segment(run, image, texts)
    page = Image.new("RGB", (SCALE * len(texts), SCALE + CAPTION), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for number, text in enumerate(texts):
        panel = Image.fromarray(prediction.overlay(number)).resize((SCALE - 6, SCALE - 6), Image.Resampling.LANCZOS)
        page.paste(panel, (SCALE * number + 3, 3))
        draw.text((SCALE * (number + 0.5), SCALE + CAPTION / 2 - 2), text, fill="black", font=font, anchor="mm")
    page.quantize(128).save(Path(__file__).parents[1] / "docs" / "example.png", optimize=True)

    lines = read_metrics(run)
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    print("| step | training loss | val oIoU | val mIoU | val Pr@0.5 |\n|---|---|---|---|---|")
    for line in lines:
        if line["kind"] == "val":
            scores = " | ".join(f"{100 * line[name]:.1f}" for name in ("oIoU", "mIoU", "Pr@0.5"))
            print(f"| {line['step']:,} | {losses[line['step']]:.3f} | {scores} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
