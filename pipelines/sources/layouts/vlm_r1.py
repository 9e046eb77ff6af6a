"""Reads the box records of VLM-R1 and Qwen: JSON lines or a list, with one sentence per record."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import JsonList
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.source_file import open_source
from pipelines.sources.table import RowFault
from pipelines.sources.targets import box_of_corners
from refseg.json_text import parse_json
from refseg.values import short

logger = logging.getLogger(__name__)

_SENTENCES = ("normal_caption", "sent", "sentence", "expression", "ref", "caption")
_BOXES = ("solution", "bbox", "box")
_QUESTION = re.compile(r"this sentence describes: *(.*?)\.?\s*$", re.DOTALL)
_NUMBERS = re.compile(r"\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]")


def rows(path: Path) -> Rows:
    """Yield one row per record. Boxes are left, top, right, bottom in pixels, and `null` means that there is no target.

    A record has fields with a sentence and a box, or it is a chat. VLM-R1's chats have a question and an answer with
    the box. Qwen's chats have an answer with `bbox_2d` and `label`.

    Raises:
        AnnotationError: If the file cannot be read.
    """
    chats = 0
    for place, record in _records(path):
        if isinstance(record, RowFault):
            yield place, record
            continue
        if not isinstance(record, dict):
            yield place, RowFault(f"found {short(record)}, expected a record with image, a sentence and a box")
            continue
        try:
            row = _chat_row(record) if "conversations" in record else _plain_row(record)
        except RowFault as fault:
            yield place, fault
            continue
        chats += "conversations" in record
        size = {name: record.get(name) for name in ("height", "width")}
        yield place, {"image": record.get("image"), **size, **row}
    if chats:
        logger.warning(
            "%s: the boxes of %d answers are read as pixels of the picture; convert them first if they are thousandths "
            "(Qwen2-VL, Qwen3-VL) or pixels of a resized picture (Qwen2.5-VL)",
            *(path, chats),
        )


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    if ".jsonl" not in path.name.lower():
        yield from ((f"[{number}]", record) for number, record in enumerate(JsonList(path, items="records of boxes")))
        return
    with open_source(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"line {number}", parse_json(line)
                except ValueError as error:
                    yield f"line {number}", RowFault(f"cannot be read as JSON ({error})")


def _plain_row(record: dict[str, Any]) -> dict[str, Any]:
    sentence = next((record[name] for name in _SENTENCES if record.get(name)), None)
    if sentence is None and isinstance(problem := record.get("problem"), str) and (match := _QUESTION.search(problem)):
        sentence = match[1]
    box = next((record[name] for name in _BOXES if name in record), RowFault)
    if sentence is None or box is RowFault:
        expected = f"a sentence ({', '.join(_SENTENCES)}) and a box ({', '.join(_BOXES)})"
        raise RowFault(f"found the fields {', '.join(map(str, record))}, expected {expected}")
    return {"sentence": sentence} | _target(box)


def _chat_row(record: dict[str, Any]) -> dict[str, Any]:
    turns = record["conversations"]
    found = [turn.get("value", turn.get("content")) for turn in turns if isinstance(turn, dict)] if turns else []
    texts = [text for text in found if isinstance(text, str)]
    if len(found) != 2 or len(texts) != 2:
        raise RowFault(f"found conversations {short(turns)}, expected a question and an answer")
    question, answer = texts
    fenced = re.sub(r"^\s*```(?:json)?|```\s*$", "", answer).strip()
    try:
        said = json.loads(fenced)
    except ValueError:
        said = None
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    if isinstance(said, dict) and "bbox_2d" in said and said.get("label"):
        return {"sentence": said["label"], **_target(said["bbox_2d"])}
    boxes, named = _NUMBERS.findall(answer), _QUESTION.search(question)
    if len(boxes) != 1 or named is None:
        raise RowFault(
            f"found the question {short(question)} and the answer {short(answer)}, expected VLM-R1's question (... "
            "this sentence describes: SENTENCE) and one box, or an answer with bbox_2d and label"
        )
    return {"sentence": named[1], **_target([float(number) for number in boxes[0]])}


def _target(box: Any) -> dict[str, Any]:
    return {"no_target": True} if box is None or box == [] else {"box": box_of_corners(box)}


READER = row_reader(
    name="vlm-r1", reads="boxes of VLM-R1 and Qwen, as JSON lines or a list", suffixes=(".jsonl", ".json"), rows=rows
)
