"""Reads Ref-Adv-s (dddraxxx/ref-adv-s): Parquet with a picture, a hard sentence and a box per row."""

from pathlib import Path

from pipelines.sources.parquet_rows import parquet_rows
from pipelines.sources.pictures import picture_name
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.table import RowFault
from pipelines.sources.targets import box_of_corners


def rows(path: Path) -> Rows:
    """Yield one row per sentence. Boxes are left, top, right, bottom in pixels.

    The dataset is only for testing, so the split of all rows is `test`, although the file's split is named `train`. The
    pictures are in the file. `refseg unpack-images` writes them to a folder, which is then given as `--images`.

    Raises:
        AnnotationError: If the file cannot be read.
    """
    columns = ("normal_caption", "solution", "width", "height", "image.path")
    for number, (place, row) in enumerate(parquet_rows(path, columns)):
        try:
            box = box_of_corners(row["solution"])
        except RowFault as fault:
            yield place, fault
            continue
        size = {name: row[name] for name in ("height", "width")}
        name = picture_name(path, number, row["image"])
        yield place, {"split": "test", "image": name, "sentence": row["normal_caption"], "box": box, **size}


READER = row_reader(name="ref-adv-s", reads="the Parquet file of dddraxxx/ref-adv-s", suffixes=(".parquet",), rows=rows)
