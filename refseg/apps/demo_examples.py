"""Reads the bundled pictures, with expressions and credits, as examples of the demo."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg.errors import AnnotationError


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledPicture:
    """A picture of the bundled sample. The demo offers it as an example.

    Attributes:
        image_id: COCO image id.
        path: Path of the JPEG.
        sentences: Expressions that annotators wrote about it.
        origin: URL at which the author published the picture.
        licence: Name of the picture's licence.
        licence_url: URL of the licence's text.
    """

    image_id: int
    path: Path
    sentences: tuple[str, ...]
    origin: str
    licence: str
    licence_url: str


def read_examples(sample: Path) -> dict[int, BundledPicture]:
    """Read the pictures with an expression from a folder in REFER's layout, by image id.

    Args:
        sample: Folder with `sample/instances.json` and COCO's licences in it, one `refs(*).json`, `images/train2014/`.

    Raises:
        AnnotationError: If the folder does not have this layout.
    """
    try:
        instances: dict[str, Any] = json.loads((sample / "sample/instances.json").read_text(encoding="utf-8"))
        refs_path = next((sample / "sample").glob("refs(*).json"))
        refs: list[dict[str, Any]] = json.loads(refs_path.read_text(encoding="utf-8"))
        licences = {licence["id"]: licence for licence in instances["licenses"]}
        sentences: defaultdict[int, list[str]] = defaultdict(list)
        for ref in refs:
            sentences[ref["image_id"]] += [sentence["sent"] for sentence in ref["sentences"]]
        return {
            image["id"]: BundledPicture(
                image_id=image["id"],
                path=sample / "images/train2014" / image["file_name"],
                sentences=tuple(sentences[image["id"]]),
                origin=image["flickr_url"],
                licence=licences[image["license"]]["name"],
                licence_url=licences[image["license"]]["url"],
            )
            for image in instances["images"]
            if image["id"] in sentences
        }
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise AnnotationError(f"{sample}: the bundled sample is damaged ({error!r}); install refseg again") from error
