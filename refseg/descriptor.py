"""`refseg.json`: what a built dataset says of itself. Written last: its presence is the commit."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from refseg.errors import DatasetError, UsageError
from refseg.geometry import GeometryKind
from refseg.schema import FORMAT_VERSION
from refseg.storage import open_folder

DESCRIPTOR_NAME = "refseg.json"
REJECTS_NAME = "rejects.parquet"
_STRICT = ConfigDict(extra="forbid")  # an unknown field is another release's: not to be passed over


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
    split: str
    num_images: int
    num_samples: int
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

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCounts:
    """How much a split holds; None where nobody counted."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    images: int | None
    refs: int | None
    sentences: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTar:
    """A tar of another dataset that rows of this one point into."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePool:
    """Another dataset's tars, used instead of writing the same images again.

    Attributes:
        name: What rows call it: `<name>/<tar>` in their `shard`; the dataset id with `-` for `/`, by default.
        path: Its folder, relative to this dataset's folder, or an absolute path or URL.
        dataset: Its dataset id.
        digest: Its digest when this dataset was built.
        tars: Those in use.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    path: str
    dataset: str
    digest: str
    tars: tuple[PoolTar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImages:
    """At what size pictures were stored, where they are not the source's bytes.

    Attributes:
        geometry: `letterbox`: the largest picture of the same shape within height x width. `stretch`: exactly that.
        height: In pixels.
        width: In pixels.
        quality: Of the new JPEGs, 1 to 100. Pictures that would have had to grow are the source's bytes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    geometry: GeometryKind
    height: int
    width: int
    quality: int


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
    digest: str
    weight: float
    num_refs: int
    dropped_refs: int
    dropped_images: int
    leaked_images: int
    found_in: dict[str, int] = field(default_factory=dict)


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
        stored_images: Size of the pictures in the tars; None: they are the source's bytes.
        image_pools: Other datasets whose tars hold images of this one.
        mix: Members of a mix, in order; empty for a dataset built from sources.
        leaks_allowed: True for a mix that kept training images although a member evaluates on them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

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
    rejects_sha256: str = ""
    source_counts: dict[str, SplitCounts] = field(default_factory=dict)
    counts_accepted: bool = False
    stored_images: StoredImages | None = None
    image_pools: tuple[ImagePool, ...] = ()
    mix: tuple[MixMember, ...] = ()
    leaks_allowed: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have shards, in order."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def digest(self) -> str:
        """SHA-256 of the rows of all shards, masks, tokens and image hashes included, and of a mix's weights.

        Two datasets with one digest give the same samples in the same order; where and with which Parquet
        version they were built does not matter.
        """
        facts: list[object] = [self.format_version, self.dataset, [[s.name, s.rows_sha256] for s in self.shards]]
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
        return json.dumps({"format": "refseg", "digest": self.digest, **asdict(self)}, indent=1) + "\n"


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
        raise DatasetError(f"{place}: is no folder; expected a dataset made by `refseg build-shards`") from error
    except FileNotFoundError as error:
        if not place.exists():
            raise DatasetError(f"{place}: no such folder; expected a dataset made by `refseg build-shards`") from error
        raise DatasetError(
            f"{place}: found no {DESCRIPTOR_NAME}, so no finished dataset; run the same `refseg build-shards` again"
        ) from error
    try:
        fields = json.loads(text)
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
        digest = fields.pop("digest")
        descriptor = TypeAdapter(Descriptor).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "unexpected_keyword_argument":
            raise DatasetError(
                f"{path}: found {where!r}, expected only what this release knows; refseg "
                f"{fields.get('refseg_version')} wrote it: use that release, or build the dataset again with this one"
            ) from error
        raise DatasetError(f"{path}: cannot be read ({where}: {first['msg']}); build the dataset again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); build the dataset again") from error
    if descriptor.digest != digest:
        raise DatasetError(f"{path}: its digest does not match its shard list; build the dataset again")
    return descriptor


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
