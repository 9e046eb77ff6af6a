"""`refseg.json`: what a built dataset says of itself. Written last: its presence is the commit."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refseg.errors import DatasetError
from refseg.schema import FORMAT_VERSION

DESCRIPTOR_NAME = "refseg.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: `name`.tar and `name`.parquet, and what they must be.

    Attributes:
        name: For example `train-00000`.
        split: The split all its refs belong to.
        num_images: Samples in the tar.
        num_refs: Rows in the manifest.
        num_sentences: Sentences over all rows.
        tar_bytes: Size of the tar.
        tar_sha256: Of the tar.
        parquet_bytes: Size of the manifest.
        parquet_sha256: Of the manifest.
        rows_sha256: Of the manifest's rows in canonical JSON: does not change with the Parquet writer's version.
    """

    name: str
    split: str
    num_images: int
    num_refs: int
    num_sentences: int
    tar_bytes: int
    tar_sha256: str
    parquet_bytes: int
    parquet_sha256: str
    rows_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """An annotation file the build read: its name, size and SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """The content of `refseg.json`.

    Attributes:
        dataset: Dataset id with its partition, for example `refcoco/unc`.
        refseg_version: Version of the package that built it.
        plan_fingerprint: SHA-256 of everything the bytes depend on.
        mask_rule: `union` or `legacy`.
        tokenizer: `name` and `vocab_sha256` of the tokenizer behind `token_ids`.
        num_rejects: Rows of `rejects.parquet`; refs in the source = rows + rejects.
        shards: In order: splits as the dataset lists them, then by number.
        sources: Annotation files read.
        licences: Of images, annotations and text, as far as the sources name them.
        format_version: Of the folder format.
        plan_keys: What `plan_fingerprint` is the hash of, by name: options, source hashes, versions.
    """

    dataset: str
    refseg_version: str
    plan_fingerprint: str
    mask_rule: str
    tokenizer: dict[str, str]
    num_rejects: int
    shards: tuple[ShardEntry, ...]
    sources: tuple[SourceFile, ...]
    licences: tuple[str, ...]
    format_version: int = FORMAT_VERSION
    plan_keys: dict[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have shards, in order."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def digest(self) -> str:
        """SHA-256 of the rows of all shards, masks, tokens and image hashes included.

        Two datasets with one digest give the same samples in the same order; where and with which Parquet
        version they were built does not matter.
        """
        facts = [[s.name, s.rows_sha256] for s in self.shards]
        return hashlib.sha256(json.dumps([self.format_version, self.dataset, facts]).encode()).hexdigest()

    def to_json(self) -> str:
        """Text of `refseg.json`."""
        return json.dumps({"format": "refseg", "digest": self.digest, **asdict(self)}, indent=1) + "\n"


def load_descriptor(folder: Path) -> Descriptor:
    """Read a dataset's descriptor.

    Raises:
        DatasetError: If there is none (the build is not finished), it is not ours, is damaged, or is of a newer format.
    """
    path = folder / DESCRIPTOR_NAME
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected a dataset made by `refseg build-shards`")
    if not path.is_file():
        raise DatasetError(
            f"{folder}: found no {DESCRIPTOR_NAME}, so no finished dataset; run the same `refseg build-shards` again"
        )
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("format_version")
        if fields.pop("format") != "refseg" or not isinstance(version, int):
            raise DatasetError(f"{path}: found another format, expected refseg")
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path}: found format version {version}, expected {FORMAT_VERSION}; "
                "use the refseg release that built it, or build the dataset again with this one"
            )
        digest = fields.pop("digest")
        fields["shards"] = tuple(ShardEntry(**shard) for shard in fields["shards"])
        fields["sources"] = tuple(SourceFile(**source) for source in fields["sources"])
        if not isinstance(fields["licences"], list):
            raise TypeError(f"licences is {fields['licences']!r:.40}")
        fields["licences"] = tuple(fields["licences"])
        descriptor = Descriptor(**fields)
        _check_types(descriptor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); build the dataset again") from error
    if descriptor.digest != digest:
        raise DatasetError(f"{path}: its digest does not match its shard list; build the dataset again")
    return descriptor


def _check_types(descriptor: Descriptor) -> None:
    """Of the fields that no digest covers: a reader that formats or counts with them must not fall over later."""
    expected = {
        "dataset": str,
        "refseg_version": str,
        "plan_fingerprint": str,
        "mask_rule": str,
        "num_rejects": int,
        "tokenizer": dict,
        "plan_keys": dict,
    }
    for name, kind in expected.items():
        value = getattr(descriptor, name)
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r:.40}, expected {kind.__name__}")
