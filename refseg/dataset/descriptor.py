"""`refseg.json`: what a built dataset says of itself. Written last: its presence is the commit."""

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
"""What follows the split in the name of an index."""
_STRICT = ConfigDict(extra="forbid")  # an unknown field is another release's: not to be passed over
_RESTORE = "put the file back as it was built, or build the dataset again"
_ORDER_FACTS_VERSION = 2  # the format version whose digest the order of an epoch is keyed by

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Some = Annotated[int, Field(ge=1, lt=2**63)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Sha256OrEmpty = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
_Split = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9]*$")]
_TarName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*-[0-9]{5,}\.tar$")]
MaskRule = Annotated[str, Field(pattern=f"^({'|'.join(MASK_RULES)})$")]
"""How the parts of a target were joined."""
_PoolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-][A-Za-z0-9_+.-]*$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: `name`.tar and `name`.parquet, and what they must be.

    Attributes:
        name: For example `train-00000`.
        split: The split all its refs belong to.
        num_images: Images the manifest's rows speak of.
        num_samples: Samples in the tar: fewer than `num_images` where images lie in a pool; 0: there is no tar.
        num_refs: Rows in the manifest.
        num_sentences: Sentences over all rows.
        tar_bytes: Size of the tar; 0 without one.
        tar_sha256: Of the tar; empty without one.
        parquet_bytes: Size of the manifest.
        parquet_sha256: Of the manifest.
        rows_sha256: Of the manifest's rows in canonical JSON: does not change with the Parquet writer's version.
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
    """The index of a split: its manifests as arrays in one file, and what the file must be.

    Attributes:
        split: The split.
        num_bytes: Size of the file.
        sha256: SHA-256 of the file.
        arrays_xxh3: XXH3-64 of the file without the packed masks, which are its end and have hashes of their own.
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
    """An annotation file the build read: its name, size and SHA-256."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    num_bytes: _Count
    sha256: _Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCounts:
    """How much a split holds; None where nobody counted."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    images: _Count | None
    refs: _Count | None
    sentences: _Count | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTar:
    """A tar of another dataset that rows of this one point into."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: _TarName
    num_bytes: _Count
    sha256: _Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImages:
    """At what size pictures were stored, where they are not the source's bytes.

    Attributes:
        geometry: `letterbox`: the largest picture of the same shape within height x width. `stretch`: exactly that.
        height: In pixels.
        width: In pixels.
        quality: JPEG quality, 1 to 100. Pictures that would have had to grow are the source's bytes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    geometry: GeometryKind
    height: _Side
    width: _Side
    quality: Annotated[int, Field(ge=1, le=100)]

    def picture_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """`(height, width)` in pixels of the stored picture of one of `original_size`."""
        _, _, height, width = place(self.geometry, (self.height, self.width), original_size)
        return (height, width) if height * width < original_size[0] * original_size[1] else original_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePool:
    """Another dataset's tars, used instead of writing the same images again.

    Attributes:
        name: What rows call it: `<name>/<tar>` in their `shard`; the dataset id with `-` for `/`, by default.
        path: Its folder, relative to this dataset's folder, or an absolute path or URL.
        dataset: Its dataset id.
        digest: Its digest when this dataset was built.
        tars: Those in use.
        stored_images: Size of the pictures in them; None: they are the source's bytes.
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
    """One dataset of a mix and what became of its training refs.

    Attributes:
        dataset: Dataset id.
        digest: Its digest when the mix was made.
        weight: How often an epoch sees each of its samples, on average.
        num_refs: Training refs kept.
        dropped_refs: Training refs left out because their image is in a val or test split of some member.
        dropped_images: Images of those.
        leaked_images: Such images that were kept, because leaks were allowed.
        found_in: By `<dataset id> <split>`, how many images of its train split (dropped or kept) are there too.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    dataset: str
    digest: _Sha256
    weight: Annotated[float, Field(gt=0, lt=1e9)]  # so that the positions in an epoch are whole numbers of 64 bits
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
        refseg_version: Version of the package that built it.
        plan_fingerprint: SHA-256 of everything the bytes depend on.
        mask_rule: `union` or `legacy`.
        tokenizer: `name` and `vocab_sha256` of the tokenizer behind `token_ids`.
        num_rejects: Rows of `rejects.parquet`; refs in the source = rows + rejects.
        rejects_sha256: Of `rejects.parquet`; empty without one.
        shards: In order: splits as the dataset lists them, then by number.
        sources: Annotation files read.
        licences: Of images, annotations and text, as far as the sources name them.
        format_version: Of the folder format.
        plan_keys: What `plan_fingerprint` is the hash of, by name: options, source hashes, versions.
        source_counts: By split, what the sources hold, rejects included.
        counts_accepted: True if the counts differ from the published ones and the user accepted that.
        stored_images: Size of the pictures in the dataset's own tars; None: they are the source's bytes.
        image_pools: Other datasets whose tars hold images of this one.
        mix: Members of a mix, in order; empty for a dataset built from sources.
        leaks_allowed: True for a mix that kept training images although a member evaluates on them.
        indexes: One for each split; no digest depends on them.
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
        """At what size some pictures were stored, here or in a pool; None: all are the source's bytes."""
        stored = (self.stored_images, *(pool.stored_images for pool in self.image_pools))
        return next((found for found in stored if found is not None), None)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the files that the dataset consists of, without the descriptor's own."""
        shards = [f"{shard.name}.{kind}" for shard in self.shards for kind in ("tar", "parquet")]
        indexes = [index.name for index in self.indexes]
        return (*shards, *indexes, *([REJECTS_NAME] if self.num_rejects else []))

    @property
    def digest(self) -> str:
        """SHA-256 of the splits and rows of all shards, masks, tokens and image hashes included, and a mix's weights.

        Two datasets with one digest give the same samples in the same order; where and with which Parquet
        version they were built does not matter.
        """
        return self._hash_rows(self.format_version, [[s.name, s.split, s.rows_sha256] for s in self.shards])

    @property
    def order_key(self) -> str:
        """SHA-256 that the order of an epoch is keyed by.

        It is the digest of format version 2, so that the orders of published runs stay as they are. A shard's name
        begins with its split, so equal keys mean equal splits here, too.
        """
        return self._hash_rows(_ORDER_FACTS_VERSION, [[s.name, s.rows_sha256] for s in self.shards])

    def _hash_rows(self, version: int, shards: list[list[str]]) -> str:
        facts: list[object] = [version, self.dataset, shards]
        if self.mix:
            facts.append([[member.dataset, member.weight] for member in self.mix])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def leaks(self) -> dict[str, dict[str, int]]:
        """What a mix with `leaks_allowed` kept: by member, how many training images each evaluation split has too."""
        if not self.leaks_allowed:
            return {}
        return {member.dataset: dict(member.found_in) for member in self.mix if member.found_in}

    def to_json(self) -> str:
        """Text of `refseg.json`."""
        fields = self._fields()
        return json.dumps({"format": "refseg", "descriptor_sha256": _hash_fields(fields), **fields}, indent=1) + "\n"

    def _fields(self) -> dict[str, Any]:
        return {"digest": self.digest, **_ADAPTER.dump_python(self, warnings=False)}


_ADAPTER = TypeAdapter(Descriptor)


def _hash_fields(fields: dict[str, Any]) -> str:
    """SHA-256 of all fields but `format` and this hash, in the order of the class."""
    return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()


def load_descriptor(folder: Path | str) -> Descriptor:
    """Read a dataset's descriptor.

    Args:
        folder: The dataset's folder, local or a URL.

    Raises:
        DatasetError: If there is none (the build is not finished), it is not ours, is damaged, or is of another format.
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
            f"{place}: found no {DESCRIPTOR_NAME}, so no finished dataset; run the same `refseg build-shards` again"
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
                f"{path}: found {where!r}, expected only what this release knows; refseg "
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
    """What keeps names from meaning one file each, and one split; None if nothing does."""
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
    """What to say of a split that a dataset does not have, with the splits that it has.

    Args:
        folder: The dataset's folder, local or a URL.
        descriptor: Descriptor of the dataset.
        split: The name that was asked for.
    """
    return (
        f"{folder}: {descriptor.dataset} has no split {split!r}; expected some of {', '.join(descriptor.splits)}"
        f"{did_you_mean(split, descriptor.splits)}"
    )


def refuse_within_dataset(out: Path) -> None:
    """Refuse to write anything else into a dataset's folder, whose files `verify` and other readers take for shards.

    Args:
        out: What `--out` names.

    Raises:
        UsageError: If it lies within a dataset.
    """
    for folder in out.resolve().parents:
        if (folder / DESCRIPTOR_NAME).is_file():
            raise UsageError(f"--out {out}: lies within the dataset {folder}; give a folder outside of it")
