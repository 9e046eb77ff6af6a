"""`refseg.json`, the descriptor of a built dataset. It is written last: a folder without it is unfinished."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from refseg.dataset.schema import FORMAT_VERSION, MASK_RULES, MAX_SIDE
from refseg.errors import DatasetError, MissingDatasetError, UsageError
from refseg.geometry import GeometryKind, place
from refseg.json_text import parse_json
from refseg.storage import open_folder
from refseg.wording import did_you_mean

DESCRIPTOR_NAME = "refseg.json"
REJECTS_NAME = "rejects.parquet"
INDEX_SUFFIX = ".index.safetensors"
"""End of an index's file name, after the split."""
_STRICT = ConfigDict(extra="forbid")  # another release wrote an unknown field, and it may change the meaning
_RESTORE = "restore the file as it was built, or build the dataset again"
_ORDER_FACTS_VERSION = 2  # the order of an epoch is keyed by the digest of this format version

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Some = Annotated[int, Field(ge=1, lt=2**63)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Sha256OrEmpty = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
_Split = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9]*$")]
_TarName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*-[0-9]{5,}\.tar$")]
MaskRule = Annotated[str, Field(pattern=f"^({'|'.join(MASK_RULES)})$")]
"""The rule by which the parts of a target are joined (`schema.MASK_RULES`)."""
_PoolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-][A-Za-z0-9_+.-]*$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: the expected content of `<name>.tar` and `<name>.parquet`.

    Attributes:
        name: Name without suffix, for example `train-00000`.
        split: The split that all its refs belong to.
        num_images: Number of images that the manifest's rows refer to.
        num_samples: Number of samples in the tar. It is less than `num_images` if images are in a pool, and 0 if the
            shard has no tar.
        num_refs: Number of rows in the manifest.
        num_sentences: Number of sentences of all rows.
        tar_bytes: Size of the tar in bytes. 0 if there is no tar.
        tar_sha256: SHA-256 of the tar. Empty if there is no tar.
        parquet_bytes: Size of the manifest.
        parquet_sha256: SHA-256 of the manifest.
        rows_sha256: SHA-256 of the manifest's rows in canonical JSON, which does not depend on the Parquet writer.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    split: _Split
    num_images: _Some
    num_samples: _Count
    num_refs: _Some
    num_sentences: _Some
    tar_bytes: _Count
    tar_sha256: _Sha256OrEmpty
    parquet_bytes: _Count
    parquet_sha256: _Sha256
    rows_sha256: _Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """The index of a split: the expected content of the file that holds its manifests as arrays.

    Attributes:
        split: Name of the split.
        num_bytes: Size of the file.
        sha256: SHA-256 of the file.
        arrays_xxh3: XXH3-64 of the file without the packed masks. These end the file and have hashes of their own.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    split: _Split
    num_bytes: _Some
    sha256: _Sha256
    arrays_xxh3: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.split}{INDEX_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """An annotation file that the build read: its name, size and SHA-256."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    num_bytes: _Count
    sha256: _Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCounts:
    """Numbers of images, refs and sentences of a split. None if unknown."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    images: _Count | None
    refs: _Count | None
    sentences: _Count | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTar:
    """A tar of another dataset that holds images of this one: its name, size and SHA-256."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: _TarName
    num_bytes: _Count
    sha256: _Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImages:
    """The size to which pictures were reduced before they were stored.

    A picture that would have become larger is stored as the source's bytes.

    Attributes:
        geometry: `letterbox` is the largest size with the picture's aspect ratio within height x width. `stretch` is
            exactly height x width.
        height: Height in pixels.
        width: Width in pixels.
        quality: JPEG quality, 1 to 100.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    geometry: GeometryKind
    height: _Side
    width: _Side
    quality: Annotated[int, Field(ge=1, le=100)]

    def picture_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """Return the `(height, width)` in pixels at which a picture of `original_size` is stored."""
        _, _, height, width = place(self.geometry, (self.height, self.width), original_size)
        return (height, width) if height * width < original_size[0] * original_size[1] else original_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePool:
    """The tars of another dataset, which this dataset uses instead of writing the same images again.

    Attributes:
        name: Name of the pool in `<name>/<tar>`, the `shard` of a row. By default the dataset id with `-` for `/`.
        path: The other dataset's folder: relative to this dataset's folder, an absolute path, or a URL.
        dataset: Id of the other dataset.
        digest: Digest of the other dataset when this one was built.
        tars: The tars that rows of this dataset refer to.
        stored_images: Size of the pictures in the tars. None if the pictures are the source's bytes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: _PoolName
    path: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    dataset: str
    digest: _Sha256
    tars: tuple[PoolTar, ...]
    stored_images: StoredImages | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixMember:
    """One dataset of a mix, with the numbers of training refs that were kept and dropped.

    Attributes:
        dataset: Dataset id.
        digest: Digest of the dataset when the mix was made.
        weight: How often an epoch contains each of its samples, on average.
        num_refs: Number of training refs that were kept.
        dropped_refs: Number of training refs left out because their image is in a val or test split of some member.
        dropped_images: Number of images of the dropped refs.
        leaked_images: Number of images that are in such a split but were kept, because leaks were allowed.
        found_in: For each `<dataset id> <split>`: how many images of this member's train split it contains, whether
            they were dropped or kept.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    dataset: str
    digest: _Sha256
    weight: Annotated[float, Field(gt=0, lt=1e9)]  # so that positions in an epoch fit into 64 bits
    num_refs: _Count
    dropped_refs: _Count
    dropped_images: _Count
    leaked_images: _Count
    found_in: dict[str, _Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """The content of `refseg.json`.

    Attributes:
        dataset: Dataset id with its partition, for example `refcoco/unc`.
        refseg_version: Version of the package that built the dataset.
        plan_fingerprint: SHA-256 of everything that determines the dataset's bytes.
        mask_rule: `union` or `legacy`.
        tokenizer: `name` and `vocab_sha256` of the tokenizer that made `token_ids`.
        num_rejects: Number of rows of `rejects.parquet`. Refs in the source = rows + rejects.
        rejects_sha256: SHA-256 of `rejects.parquet`. Empty if the file does not exist.
        shards: The shards, in the dataset's order of splits and then by number.
        sources: The annotation files that the build read.
        licences: Licences of images, annotations and text, as far as the sources name them.
        format_version: Version of the folder format.
        plan_keys: The named values that `plan_fingerprint` is the hash of: options, source hashes, versions.
        source_counts: For each split, the counts of the sources, rejects included.
        counts_accepted: True if the counts differ from the published ones and the user accepted that.
        stored_images: Size of the pictures in the dataset's own tars. None if the pictures are the source's bytes.
        image_pools: Other datasets whose tars hold images of this one.
        mix: Members of a mix, in order. Empty for a dataset built from sources.
        leaks_allowed: True for a mix that kept training images although a member evaluates on them.
        indexes: One index per split. No digest depends on the indexes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    dataset: str
    refseg_version: str
    plan_fingerprint: _Sha256
    mask_rule: MaskRule
    tokenizer: dict[str, str]
    num_rejects: _Count
    shards: tuple[ShardEntry, ...]
    sources: tuple[SourceFile, ...]
    licences: tuple[str, ...]
    format_version: int = FORMAT_VERSION
    plan_keys: dict[str, str] = field(default_factory=dict)
    rejects_sha256: _Sha256OrEmpty = ""
    source_counts: dict[str, SplitCounts] = field(default_factory=dict)
    counts_accepted: bool = False
    stored_images: StoredImages | None = None
    image_pools: tuple[ImagePool, ...] = ()
    mix: tuple[MixMember, ...] = ()
    leaks_allowed: bool = False
    indexes: tuple[IndexEntry, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have shards, in order."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def smaller_images(self) -> StoredImages | None:
        """The reduced size of some pictures, in this dataset or a pool; None: all are the source's bytes."""
        stored = (self.stored_images, *(pool.stored_images for pool in self.image_pools))
        return next((found for found in stored if found is not None), None)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of all files of the dataset except the descriptor."""
        shards = [f"{shard.name}.{kind}" for shard in self.shards for kind in ("tar", "parquet")]
        indexes = [index.name for index in self.indexes]
        return (*shards, *indexes, *([REJECTS_NAME] if self.num_rejects else []))

    @property
    def digest(self) -> str:
        """SHA-256 of the rows of all shards (with masks, tokens and image hashes), their splits and a mix's weights.

        Two datasets with the same digest give the same samples in the same order. The digest does not depend on the
        machine or the Parquet version that built them.
        """
        return self._hash_rows(self.format_version, [[s.name, s.split, s.rows_sha256] for s in self.shards])

    @property
    def order_key(self) -> str:
        """SHA-256 from which the order of an epoch is derived.

        It is the digest as format version 2 defines it, so that the orders of published runs do not change. It leaves
        out the shards' splits: a shard's name begins with its split, so equal keys still mean equal splits.
        """
        return self._hash_rows(_ORDER_FACTS_VERSION, [[s.name, s.rows_sha256] for s in self.shards])

    def _hash_rows(self, version: int, shards: list[list[str]]) -> str:
        facts: list[object] = [version, self.dataset, shards]
        if self.mix:
            facts.append([[member.dataset, member.weight] for member in self.mix])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def leaks(self) -> dict[str, dict[str, int]]:
        """For each member of a mix with `leaks_allowed`: how many training images each evaluation split also contains.

        Empty if leaks were not allowed.
        """
        if not self.leaks_allowed:
            return {}
        return {member.dataset: dict(member.found_in) for member in self.mix if member.found_in}

    def to_json(self) -> str:
        """Return the text of `refseg.json`."""
        fields = self._fields()
        return json.dumps({"format": "refseg", "descriptor_sha256": _hash_fields(fields), **fields}, indent=1) + "\n"

    def _fields(self) -> dict[str, Any]:
        return {"digest": self.digest, **_ADAPTER.dump_python(self, warnings=False)}


_ADAPTER = TypeAdapter(Descriptor)


def _hash_fields(fields: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields except `format` and this hash, in the order of the class."""
    return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()


def load_descriptor(folder: Path | str) -> Descriptor:
    """Read a dataset's descriptor.

    Args:
        folder: The dataset's folder, local or a URL.

    Raises:
        MissingDatasetError: If the folder does not exist or is not a folder.
        DatasetError: If there is no descriptor (the build is not finished), or if it is damaged or of another format.
        StorageError: If remote storage refuses or fails.
    """
    place = open_folder(folder)
    path = place.join(DESCRIPTOR_NAME)
    try:
        text = place.read(DESCRIPTOR_NAME)
    except NotADirectoryError as error:
        raise MissingDatasetError(
            f"{place}: is not a folder; expected a dataset made by `refseg build-shards`"
        ) from error
    except FileNotFoundError as error:
        if not place.exists():
            raise MissingDatasetError(
                f"{place}: no such folder; expected a dataset made by `refseg build-shards`"
            ) from error
        raise DatasetError(
            f"{place}: found no {DESCRIPTOR_NAME}, so the dataset is unfinished; run the same `refseg build-shards` "
            "again"
        ) from error
    try:
        fields = parse_json(text)
        if not isinstance(fields, dict):
            raise DatasetError(
                f"{path}: found a {type(fields).__name__}, expected a descriptor; build the dataset again"
            )
        version = fields["format_version"]
        if fields.pop("format") != "refseg" or not isinstance(version, int):
            raise DatasetError(
                f"{path}: found another format, expected refseg's; give a dataset made by `refseg build-shards`"
            )
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path}: found format version {version}, expected {FORMAT_VERSION}; "
                "use the refseg release that built it, or build the dataset again with this one"
            )
        digest, sha256 = fields.pop("digest"), fields.pop("descriptor_sha256")
        descriptor = _ADAPTER.validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "unexpected_keyword_argument":
            raise DatasetError(
                f"{path}: found the field {where!r}, which this release does not know; refseg "
                f"{fields.get('refseg_version')} wrote it: use that release, or build the dataset again with this one"
            ) from error
        raise DatasetError(f"{path}: cannot be read ({where}: {first['msg']}); {_RESTORE}") from error
    except KeyError as error:
        raise DatasetError(f"{path}: has no field {error}; {_RESTORE}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); {_RESTORE}") from error
    if (wrong := _find_contradiction(descriptor)) is not None:
        raise DatasetError(f"{path}: {wrong}; {_RESTORE}")
    if descriptor.digest != digest:
        raise DatasetError(f"{path}: its digest does not match its shard list; {_RESTORE}")
    if _hash_fields(descriptor._fields()) != sha256:
        raise DatasetError(
            f"{path}: its content does not match its descriptor_sha256, so it was edited or damaged after the build; "
            f"{_RESTORE}"
        )
    return descriptor


def _find_contradiction(descriptor: Descriptor) -> str | None:
    """Describe the first name that is repeated or does not fit its split. Return None if there is no such name."""
    for entry in descriptor.shards:
        if not re.fullmatch(rf"{entry.split}-[0-9]{{5,}}", entry.name):
            return f"found shard {entry.name!r} of split {entry.split!r}, expected a name <split>-<number>"
    names = [("shard", [entry.name for entry in descriptor.shards])]
    names += [("index of split", [index.split for index in descriptor.indexes])]
    names += [("image pool", [pool.name for pool in descriptor.image_pools])]
    names += [(f"tar of image pool {pool.name}", [tar.name for tar in pool.tars]) for pool in descriptor.image_pools]
    for what, found in names:
        if repeated := [name for name, number in Counter(found).items() if number > 1]:
            return f"found {what} {repeated[0]} more than once, expected each once"
    return None


def unknown_split(folder: Path | str, descriptor: Descriptor, split: str) -> str:
    """Return the message for a split that a dataset does not have; it lists the splits that exist.

    Args:
        folder: The dataset's folder, local or a URL.
        descriptor: Descriptor of the dataset.
        split: The name that the user requested.
    """
    return (
        f"{folder}: {descriptor.dataset} has no split {split!r}; expected some of {', '.join(descriptor.splits)}"
        f"{did_you_mean(split, descriptor.splits)}"
    )


def refuse_within_dataset(out: Path) -> None:
    """Refuse an output path within a dataset's folder, where readers would take its files for shards.

    Args:
        out: The path given as `--out`.

    Raises:
        UsageError: If it is within a dataset.
    """
    for folder in out.resolve().parents:
        if (folder / DESCRIPTOR_NAME).is_file():
            raise UsageError(f"--out {out}: is within the dataset {folder}; give a folder outside of it")
