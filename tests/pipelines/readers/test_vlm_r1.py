"""Boxes of VLM-R1 and Qwen."""

import json
from pathlib import Path
from typing import Any

import pytest

from refseg.errors import AnnotationError

from .example import NOTHING, Example, area, meanings, read

SIZE = {"height": 10, "width": 20}


def chat(image: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"id": 1, "image": image, **SIZE, "conversations": turns}


EXAMPLE = Example(
    reader="vlm-r1",
    files={
        "train.json": [
            {"image": "a.jpg", "sent": "of Qwen", "bbox": [1, 2, 5, 6], **SIZE},
            {"image": "a.jpg", "normal_caption": "of VLM-R1", "problem": "...", "solution": [0, 0, 2, 3], **SIZE},
            {"image": "a.jpg", "normal_caption": "nothing", "solution": None, **SIZE},
            {"image": "b.jpg", "problem": "Where? this sentence describes: the cup.", "solution": [4, 4, 6, 6], **SIZE},
        ],
    },
    means={
        ("train", "a.jpg", "of Qwen"): area(1, 2, 5, 6),
        ("train", "a.jpg", "of VLM-R1"): area(0, 0, 2, 3),
        ("train", "a.jpg", "nothing"): NOTHING,
        ("train", "b.jpg", "the cup"): area(4, 4, 6, 6),
    },
)


def test_lines_and_chats_are_read_and_their_unit_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    question = "Please provide the bounding box coordinate of the region this sentence describes: the cup."
    records = [
        chat("a.jpg", question, "[1, 2, 5, 6]"),
        chat("b.jpg", "Locate the house.", '```json\n[{"bbox_2d": [0, 0, 2, 3], "label": "the house"}]\n```'),
    ]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    found = meanings(read(tmp_path, "vlm-r1"))

    assert (found["val", "a.jpg", "the cup"] == area(1, 2, 5, 6)).all()
    assert (found["val", "b.jpg", "the house"] == area(0, 0, 2, 3)).all()
    assert "the boxes of 2 answers are read as pixels of the picture" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "a.jpg", "sent": "x", "bbox": [5, 2, 1, 6]}, "found box [5, 2, 1, 6], expected left, top, right"),
        ({"image": "a.jpg", "sent": "x"}, "found the fields image, sent, expected a sentence (normal_caption, "),
        (chat("a.jpg", "Where is it?", "[1, 2, 5, 6]"), "expected VLM-R1's question"),
        (chat("a.jpg", "... this sentence describes: x", "nowhere"), "and the answer 'nowhere', expected"),
        ({"image": ["a.jpg", "b.jpg"], "sent": "x", "bbox": [1, 2, 5, 6]}, "found image ['a.jpg', 'b.jpg'], expected"),
    ],
)
def test_a_record_of_another_form_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n" + json.dumps(record))

    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, "vlm-r1")

    assert "train.jsonl line 2: " in str(caught.value)
    assert message in str(caught.value)
