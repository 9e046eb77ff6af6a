"""Reads the samples of a tar one after the other, and compares each sample with the manifest."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from pipelines.build_shard import sample_json
from pipelines.tars import BLOCK, walk_members
from pipelines.verify.rows import Row
from refseg.dataset.descriptor import StoredImages
from refseg.dataset.faults import Fault
from refseg.dataset.schema import RefRecord
from refseg.errors import DatasetError, ImageError
from refseg.jpeg_header import jpeg_size
from refseg.json_text import parse_json

_KEY = re.compile(r"(-?\d{11,19})(?:_([1-9]\d{0,8}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSample:
    """A sample of a tar.

    Attributes:
        key: Key of the sample, `<image id>` or `<image id>_<number>`.
        image_id: Image id in the key.
        number: Number in the key, which distinguishes the samples of one image; 0 if the key has no number.
        image_offset: Offset of the JPEG in the tar.
        image: Bytes of the JPEG.
        text: Bytes of the JSON.
        num_bytes: Length of the whole sample in bytes.
    """

    key: str
    image_id: int
    number: int
    image_offset: int
    image: bytes
    text: bytes
    num_bytes: int


def walk_samples(data: bytes) -> Iterator[TarSample]:
    """Yield the samples of a tar.

    Raises:
        DatasetError: If the tar differs from what a build writes. Samples before the first difference are yielded.
    """
    members = walk_members(io.BytesIO(data))
    for member in members:
        start = member.offset - BLOCK
        key, _, suffix = member.name.partition(".")
        match = _KEY.fullmatch(key)
        if match is None or f"{int(match[1]):012d}" != match[1] or abs(int(match[1])) >= 2**63:
            raise DatasetError(f"at byte {start}: the key of {member.name} is not <image id>[_<number>]")
        text = next(members, None)
        if suffix != "jpg" or text is None or text.name != f"{key}.json":
            raise DatasetError(
                f"at byte {start}: {member.name} is followed by {text.name if text else 'the end'}, which are not the "
                "JPEG and JSON of one sample"
            )
        yield TarSample(
            key=key,
            image_id=int(match[1]),
            number=int(match[2] or 0),
            image_offset=member.offset,
            image=member.payload,
            text=text.payload,
            num_bytes=text.offset + len(text.payload) + -len(text.payload) % BLOCK - start,
        )


def check_sample(
    file: str,
    sample: TarSample,
    data: bytes,
    rows: Sequence[Row],
    records: Sequence[RefRecord | Exception],
    stored_images: StoredImages | None,
) -> Iterator[Fault]:
    """Compare the offset, size, hashes and JSON of a sample with the image's rows.

    Args:
        file: Name of the tar.
        sample: The sample.
        data: Bytes of the tar.
        rows: Rows of the image.
        records: Records of these rows.
        stored_images: Size to which the tar's pictures were reduced; None if they have the size that the rows state.
    """

    def fault(found: str, expected: str) -> Fault:
        return Fault(file=file, sample=sample.key, found=found, expected=expected)

    image_xxh3 = xxhash.xxh3_64_hexdigest(sample.image)
    for row in rows:
        if (row["image_offset"], row["image_bytes"]) != (sample.image_offset, len(sample.image)):
            found = f"{len(sample.image)} bytes at {sample.image_offset}"
            yield fault(found, f"{row['image_bytes']} at {row['image_offset']} as in the manifest")
            return
        if row["image_xxh3"] != image_xxh3:
            yield fault("other image bytes", f"xxh3 {row['image_xxh3']} as in the manifest")
            return
    for row in rows[:1]:
        size_fault = find_size_fault(sample.image, (row["height"], row["width"]), stored_images)
        if size_fault is not None:
            yield fault(*size_fault)
            return
    are_records = all(isinstance(record, RefRecord) for record in records)
    if are_records and sample.text != (expected_text := sample_json(rows)):
        yield fault(f"a .json that differs from the manifest{_difference(sample.text, expected_text)}", "the same refs")
        return
    xxh3 = hash_span(data, sample.image_offset, sample.num_bytes)
    for row in rows:
        if (row["sample_bytes"], row["sample_xxh3"]) != (sample.num_bytes, xxh3):
            found = f"a sample of {sample.num_bytes} bytes with xxh3 {xxh3}"
            yield fault(found, f"{row['sample_bytes']} bytes with {row['sample_xxh3']} as in the manifest")
            return


def find_size_fault(
    jpeg: bytes | memoryview, size: tuple[int, int], stored_images: StoredImages | None
) -> tuple[str, str] | None:
    """Compare the size in a picture's header with the rows.

    Args:
        jpeg: Bytes of the picture.
        size: `(height, width)` in pixels, as the rows state.
        stored_images: Size to which pictures were reduced; None if they have the size that the rows state.

    Returns:
        What was found and what was expected; None if the sizes agree.
    """
    expected = size if stored_images is None else stored_images.picture_size(size)
    try:
        found = "{} x {} pixels".format(*jpeg_size(jpeg))
    except ImageError as error:
        found = f"an image that {error}"
    wanted = "{} x {} pixels".format(*expected)
    return None if found == wanted else (found, f"{wanted} (height x width) as in the manifest")


def hash_span(data: bytes, image_offset: int, num_bytes: int) -> str:
    """Return the XXH3-64 of a whole sample, given the JPEG's offset."""
    start = max(0, image_offset - BLOCK)
    return str(xxhash.xxh3_64_hexdigest(memoryview(data)[start : start + num_bytes]))


def _difference(found: bytes, expected: bytes) -> str:
    """Describe the first difference between the JSON of two samples; empty if one cannot be read."""
    try:
        ours, theirs = parse_json(found), parse_json(expected)
        for name, value in theirs.items():
            if name != "refs" and ours[name] != value:
                return f" in {name}"
        for mine, other in zip(ours["refs"], theirs["refs"], strict=True):
            for name, value in other.items():
                if mine[name] != value:
                    return f" in {name} of ref {other['ref_id']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return ""
