"""Joins the rows of a user's table to refs and images, in a database on disk, which keeps memory constant."""

import json
import re
import sqlite3
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from pipelines.masks import encode_mask, read_segmentation
from pipelines.sources.custom_row import CustomRow, Size
from pipelines.sources.raw import has_no_size
from pipelines.sources.table import RowFault
from refseg.errors import AnnotationError
from refseg.mask_png import DEFAULT_RULE, PngRule, read_mask_png
from refseg.values import is_text, whole_number

_TABLES = """
CREATE TABLE listed (id INTEGER PRIMARY KEY, name TEXT, height INTEGER, width INTEGER);
CREATE INDEX listed_name ON listed (name);
CREATE TABLE images (
    image INTEGER PRIMARY KEY, key TEXT UNIQUE, name TEXT, id INTEGER, listed INTEGER, height INTEGER, width INTEGER,
    place TEXT, by_target INTEGER DEFAULT FALSE
);
CREATE INDEX images_id ON images (id);
CREATE TABLE refs (
    ref INTEGER PRIMARY KEY, key BLOB UNIQUE, meaning BLOB, ref_id INTEGER, image INTEGER, split TEXT, category TEXT,
    kind TEXT, target TEXT, label TEXT, place TEXT
);
CREATE TABLE sentences (position INTEGER PRIMARY KEY, ref INTEGER, sent_id INTEGER, sentence TEXT);
CREATE INDEX sentences_ref ON sentences (ref, position);
"""


class CustomStore:
    """A temporary database of a table's rows, which SQLite removes when the store is deleted.

    `add_listed` and `add` add rows, and `finish` completes the database. Then `refs` and `records` can be read any
    number of times.

    Args:
        root: Folder to which paths of mask files are relative.
        prefix: Text before a row's location in messages. It is the name of the table and a space, or empty.
        png_rule: How mask files are read.
    """

    def __init__(self, root: Path, prefix: str, png_rule: PngRule = DEFAULT_RULE) -> None:
        self._png_rule = png_rule
        self._root = root
        self._prefix = prefix
        # For SQLite the empty name means a private temporary file. It need not survive a crash, so that no journal is
        # written. A cache of 64 MiB makes most lookups of refs possible without reading the disk.
        self._base = sqlite3.connect("", check_same_thread=False)
        weakref.finalize(self, self._base.close)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;" + _TABLES
        )
        self._categories: dict[str, int] = {}
        self._max_category = self._max_image = self._max_annotation = 0
        self._given: dict[str, set[bool]] = {"ref_id": set(), "sent_id": set()}
        self._num_refs = self._num_rows = 0
        self._last_image: tuple[str, Size | None, int] = ("", None, 0)  # rows of one image are usually adjacent
        self._masks = sha256()
        self.num_mask_files = self.mask_bytes = 0
        self.object_values: Counter[str] = Counter()

    @property
    def masks_sha256(self) -> str:
        """The SHA-256 of the paths and contents of all mask files."""
        return self._masks.hexdigest()

    @property
    def num_rows(self) -> int:
        """The number of rows that were added."""
        return self._num_rows

    def add_listed(self, section: str, record: Any) -> None:
        """Store the name, size and id from a record of `instances.json`. A malformed record is ignored."""
        key = whole_number(record.get("id")) if isinstance(record, dict) else None
        if key is None or not 0 <= key < 2**62:
            return
        if section == "images":
            if is_text(name := record.get("file_name")):
                size = whole_number(record.get("height")), whole_number(record.get("width"))
                known = size if None not in size else (None, None)
                self._base.execute("INSERT OR IGNORE INTO listed VALUES (?, ?, ?, ?)", (key, _plain_name(name), *known))
                self._max_image = max(self._max_image, key)
        elif section == "annotations":
            self._max_annotation = max(self._max_annotation, key)
        elif section == "categories":
            self._max_category = max(self._max_category, key)
            if is_text(record.get("name")):
                self._categories.setdefault(record["name"], key)

    def add(self, row: CustomRow, place: str) -> None:
        """Add a sentence. The first sentence of a ref also adds the ref.

        Two rows belong to the same ref if the `key` is equal. The key is a hash of the given ref_id or, without one, of
        the row's `meaning`. The meaning consists of image, split and target.

        Args:
            row: The checked row.
            place: Location of the row in the table, for example `line 2`.

        Raises:
            RowFault: If the row contradicts an earlier row or `instances.json`, or the mask file cannot be read.
        """
        if row.kind == "mask":
            row = replace(row, target=_plain_name(row.target))
        image = self._add_image(row, place)
        self._given["ref_id"].add(row.ref_id is not None)
        self._given["sent_id"].add(row.sent_id is not None)
        meaning = _digest(image, row.split, row.kind, row.target)
        key = meaning if row.ref_id is None else _digest("ref_id", row.ref_id)
        found = self._base.execute("SELECT ref, meaning, place FROM refs WHERE key = ?", (key,)).fetchone()
        if found is None:
            ref = self._num_refs
            target = self._mask_target(row, image, place) if row.kind == "mask" else row.target
            if row.kind == "rle":
                size = (target[0]["size"][0], target[0]["size"][1])
                self._learn_size(image, size, f"{place} (rle)", by_target=True)
            ref_id = ref if row.ref_id is None else row.ref_id
            self._base.execute(
                "INSERT INTO refs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(ref, key, meaning, ref_id, image, row.split, row.category),
                    *(row.kind, json.dumps(target), _label(row), place),
                ),
            )
            self._num_refs += 1
        else:
            ref = found[0]
            if found[1] != meaning:
                raise RowFault(
                    f"ref_id {row.ref_id} has another image, split or target than in {found[2]}, expected the same; "
                    "give each ref its own ref_id"
                )
        sent_id = self._num_rows if row.sent_id is None else row.sent_id
        self._base.execute("INSERT INTO sentences VALUES (?, ?, ?, ?)", (self._num_rows, ref, sent_id, row.sentence))
        self._num_rows += 1

    def finish(self) -> list[str]:
        """Number the images that have no id, and return mistakes that show only when all rows are known."""
        base = max(self._max_image, self._base.execute("SELECT MAX(id) FROM images").fetchone()[0] or 0)
        self._base.execute("UPDATE images SET id = ? + image WHERE id IS NULL", (base,))
        self._base.commit()
        faults = [
            f"{name} is given in some rows and not in others; give it in all or in none"
            for name, given in self._given.items()
            if len(given) == 2
        ]
        twice = (
            "SELECT split, sent_id FROM sentences JOIN refs USING (ref) "
            "GROUP BY split, sent_id HAVING COUNT(*) > 1 LIMIT 1"
        )
        if True in self._given["sent_id"]:
            for split, sent_id in self._base.execute(twice):
                faults.append(f"sent_id {sent_id} occurs more than once in {split}, expected it once")
        return faults

    def splits(self) -> set[str]:
        """Return the names of the splits."""
        return {split for (split,) in self._base.execute("SELECT DISTINCT split FROM refs")}

    def refs(self) -> Iterator[dict[str, Any]]:
        """Yield REFER's records in the order of their first rows."""
        rows = self._base.execute(
            "SELECT ref, ref_id, id, split, kind, target, label, refs.place, sent_id, sentence "
            "FROM sentences JOIN refs USING (ref) JOIN images USING (image) ORDER BY ref, position"
        )
        for facts, group in groupby(rows, key=itemgetter(*range(8))):
            ref, ref_id, image_id, split, kind, target, label, place = facts
            ann_id: Any = -1
            if kind != "no_target":
                ann_id = json.loads(target) if kind == "ann_id" else self._annotation_id(ref)
            sentences = [
                {"sent_id": sent_id, "sent": sentence, "tokens": sentence.split()} for *_, sent_id, sentence in group
            ]
            yield {
                "ref_id": ref_id,
                "image_id": image_id,
                "ann_id": ann_id,
                "split": split,
                "sentences": sentences,
                "where": f"{self._prefix}{place}",
                "target": label,
            }

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield COCO's records for the images, categories and annotations that are not in `instances.json`."""
        categories = dict(self._categories)
        shapes = "FROM refs WHERE kind IN ('rle', 'polygons', 'mask', 'box')"
        for (name,) in self._base.execute(f"SELECT category {shapes} GROUP BY category ORDER BY MIN(ref)"):
            if name not in categories:
                categories[name] = self._max_category + 1 + len(categories) - len(self._categories)
                yield "categories", {"id": categories[name], "name": name}
        for image_id, name in self._base.execute("SELECT id, name FROM images WHERE NOT listed ORDER BY image"):
            yield "images", {"id": image_id, "file_name": name} | self._size_fields(image_id)
        for ref, image_id, category, kind, target in self._base.execute(
            f"SELECT ref, id, category, kind, target {shapes.replace('refs', 'refs JOIN images USING (image)')} "
            "ORDER BY ref"
        ):
            record = {"id": self._annotation_id(ref), "image_id": image_id, "category_id": categories[category]}
            yield "annotations", record | {"iscrowd": 0} | _shape_fields(kind, json.loads(target))

    def complete(self, image: Any) -> Any:
        """Return an image's record of `instances.json`. If it has no size, the size from the table is added."""
        if not isinstance(image, dict) or not has_no_size(image):
            return image
        key = whole_number(image.get("id"))
        bare = {name: value for name, value in image.items() if name not in ("height", "width")}
        return bare if key is None else bare | self._size_fields(key)

    def _size_fields(self, image_id: int) -> dict[str, Any]:
        """Return the fields of an image's size from the table's rows; empty if no row states the size."""
        query = "SELECT height, width, place, by_target FROM images WHERE id = ? AND height IS NOT NULL"
        found = self._base.execute(query, (image_id,)).fetchone()
        if found is None:
            return {}
        height, width, place, by_target = found
        fields = {"height": height, "width": width, "size_from": f"{self._prefix}{place}"}
        return fields | ({"size_by_target": True} if by_target else {})

    def _annotation_id(self, ref: int) -> int:
        return self._max_annotation + 1 + ref

    def _add_image(self, row: CustomRow, place: str) -> int:
        """Return the number of a row's image in the database. A new image is added with the known id and size."""
        if (row.image, row.size) == self._last_image[:2]:
            return self._last_image[2]
        image = _plain_name(row.image)
        listed = self._find_listed(image)
        is_id = _is_id(image)
        name = f"{int(image):012d}.jpg" if is_id else image
        # `7`, `007` and `000000000007.jpg` are the same image, so they have the same key.
        key = f"name {name}" if listed is None else f"listed {listed[0]}"
        found = self._base.execute("SELECT image FROM images WHERE key = ?", (key,)).fetchone()
        if found is None:
            if listed is None:
                facts = (name, int(image) if is_id else None, False, None, None)
            else:
                facts = (listed[1], listed[0], True, listed[2], listed[3])
            where = place if listed is None else "instances.json"
            columns = "key, name, id, listed, height, width, place"
            cursor = self._base.execute(
                f"INSERT INTO images ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *facts, where)
            )
            found = (int(cursor.lastrowid or 0),)
        if row.size is not None:
            self._learn_size(found[0], row.size, place)
        self._last_image = row.image, row.size, int(found[0])
        return int(found[0])

    def _find_listed(self, image: str) -> Any:
        column, value = ("id", int(image)) if _is_id(image) else ("name", image)
        return self._base.execute(f"SELECT * FROM listed WHERE {column} = ?", (value,)).fetchone()

    def _learn_size(self, image: int, size: Size, place: str, mask: str = "", *, by_target: bool = False) -> None:
        """Store an image's size, or compare it with the known size.

        A size from the columns height and width replaces an equal size from a target. Then `by_target` is False.
        """
        query = "SELECT height, width, place, by_target, name FROM images WHERE image = ?"
        height, width, where, was_target, name = self._base.execute(query, (image,)).fetchone()
        if height is None or ((height, width) == size and was_target and not by_target):
            self._base.execute(
                "UPDATE images SET height = ?, width = ?, place = ?, by_target = ? WHERE image = ?",
                (*size, place, by_target, image),
            )
        elif (height, width) != size:
            found = f"{size[0]} x {size[1]} pixels (height x width)"
            if mask:
                raise RowFault(f"mask {mask} is {found}, but image {name!r} is {height} x {width} in {where}")
            raise RowFault(f"image {name!r} is {found} in this row, but {height} x {width} in {where}")

    def _mask_target(self, row: CustomRow, image: int, place: str) -> list[dict[str, Any]]:
        path = self._root / row.target
        try:
            data = path.read_bytes()
            mask = read_mask_png(data, self._png_rule)
        except OSError as error:
            raise RowFault(f"mask {row.target} cannot be read ({error.strerror})") from error
        except AnnotationError as error:
            raise RowFault(f"mask {row.target} {error}") from error
        self._masks.update(f"{row.target}\0".encode() + sha256(data).digest())
        self.num_mask_files += 1
        self.mask_bytes += len(data)
        self.object_values[mask.object_value] += 1
        rle = encode_mask(mask.pixels)
        self._learn_size(image, rle.size, f"{place} (mask {row.target})", row.target, by_target=True)
        return [{"size": rle.size, "counts": rle.counts}]


def _label(row: CustomRow) -> str:
    """Describe a target in the user's terms, for messages. The text is empty for annotations, which have ids."""
    if row.kind == "mask":
        return f"mask {row.target}"
    if row.kind == "box":
        return f"box {' '.join(f'{number:g}' for number in row.target)}"
    return row.kind if row.kind in ("rle", "polygons") else ""


def _shape_fields(kind: str, target: Any) -> dict[str, Any]:
    """Return `bbox`, `area` and, unless the target is a box, `segmentation`."""
    if kind == "box":
        return {"bbox": target, "area": target[2] * target[3]}
    if kind == "polygons":
        across = [x for polygon in target for x in polygon[::2]]
        down = [y for polygon in target for y in polygon[1::2]]
        if not down:  # the check of records finds this fault again and rejects the ref with its reason
            return {"bbox": [0, 0, 0, 0], "area": 0, "segmentation": target}
        box = [min(across), min(down), max(across) - min(across), max(down) - min(down)]
        return {"bbox": box, "area": sum(map(_polygon_area, target)), "segmentation": target}
    segmentation = target[0] if len(target) == 1 else target
    height, width = target[0]["size"]
    try:
        _, rles = read_segmentation(target, (height, width))
    except AnnotationError:  # the check of records finds this fault again and rejects the ref with its reason
        return {"bbox": [0, 0, 0, 0], "area": 0, "segmentation": segmentation}
    parts = [{"size": [height, width], "counts": list(rle.counts)} for rle in rles]
    packed = coco_mask.merge([coco_mask.frPyObjects(part, height, width) for part in parts])
    box, area = coco_mask.toBbox(packed).tolist(), float(coco_mask.area(packed))
    return {"bbox": box, "area": area, "segmentation": segmentation}


def _polygon_area(polygon: list[float]) -> float:
    """Return the area of a polygon in square pixels, by the shoelace formula."""
    corners = list(zip(polygon[::2], polygon[1::2], strict=False))
    pairs = zip(corners, [*corners[1:], *corners[:1]], strict=True)
    return abs(sum(x * other_y - other_x * y for (x, y), (other_x, other_y) in pairs)) / 2


def _plain_name(name: str) -> str:
    """Return a path without `.` and double slashes, so that all spellings mean the same image. `.` is unchanged."""
    plain = str(PurePosixPath(name))
    return name if plain == "." else plain


def _digest(*parts: Any) -> bytes:
    return sha256(repr(parts).encode()).digest()


def _is_id(image: str) -> bool:
    """Return True for an image id, which has at most the 12 digits of COCO's file names."""
    return re.fullmatch(r"[0-9]{1,12}", image) is not None
