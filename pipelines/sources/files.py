"""Source files: their hashes, and COCO's JSON record by record."""

from collections.abc import Iterator, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

import ijson

from refseg.descriptor import SourceFile
from refseg.errors import AnnotationError
from refseg.schema import DatasetSpec

SECTIONS = ("categories", "licenses", "images", "annotations")


def hash_file(path: Path, spec: DatasetSpec) -> SourceFile:
    """Size and SHA-256 of a file.

    Raises:
        AnnotationError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
            return SourceFile(name=f"{spec.folder}/{path.name}", num_bytes=file.tell(), sha256=digest)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error


def stream_instances(path: Path, sections: Sequence[str] = SECTIONS) -> Iterator[tuple[str, Any]]:
    """Yield the records of COCO's JSON as `(section, record)`, section by section; no more of it is held in memory.

    Raises:
        AnnotationError: If it cannot be read as JSON.
    """
    try:
        for section in sections:
            with path.open("rb") as file:
                for record in ijson.items(file, f"{section}.item", use_float=True):
                    yield section, record
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ijson.JSONError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise AnnotationError(f"{path}: cannot be read as JSON ({reason}); fetch the file again") from error
