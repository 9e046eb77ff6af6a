"""Defines the plan of a build, with the shards and a fingerprint of everything that determines the dataset's bytes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from pipelines.build_folder import PLAN_NAME, SAMPLES_FOLDER
from pipelines.rejects import Reject
from pipelines.sources.raw import RawSource
from refseg import __version__, tokenizer
from refseg.dataset.descriptor import ImagePool, SourceFile, SplitCounts, StoredImages
from refseg.dataset.schema import FORMAT_VERSION, MANIFEST_SCHEMA
from refseg.errors import BuildError
from refseg.storage import Folder

TOOL_KEYS = ("pyarrow", "refseg_version")
"""Keys that may differ when a finished dataset is checked again. They change the files' bytes but not their content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard to build.

    Attributes:
        name: Name without suffix, for example `train-00000`.
        split: The split of all refs of the shard.
        num_samples: Number of images.
        samples_sha256: SHA-256 of the file in `SAMPLES_FOLDER` that `check_records` wrote.
    """

    name: str
    split: str
    num_samples: int
    samples_sha256: str

    @property
    def samples_name(self) -> str:
        """Path of the shard's file of checked records, relative to the dataset's folder."""
        return f"{SAMPLES_FOLDER}/{self.name}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """The shards to build, and everything in the descriptor that does not depend on the built shards.

    Attributes:
        dataset: Dataset id.
        keys: Named values that determine the dataset's bytes.
        mask_rule: `union` or `legacy`.
        shards: Shards in the order of the descriptor: splits in canonical order, then by number.
        rejects: Refs with faults in the annotations, and refs without an image.
        sources: Annotation files that were read.
        licences: Licences of the images in use.
        source_counts: Counts of the sources by split.
        counts_accepted: True if the counts differ from the published ones and the user accepted that.
        stored_images: Size to which pictures are reduced; None if the source's bytes are stored.
        image_pools: Other datasets whose tars hold images of this dataset.
    """

    dataset: str
    keys: dict[str, str]
    mask_rule: str
    shards: tuple[PlannedShard, ...]
    rejects: tuple[Reject, ...]
    sources: tuple[SourceFile, ...]
    licences: tuple[str, ...]
    source_counts: dict[str, SplitCounts]
    counts_accepted: bool
    stored_images: StoredImages | None
    image_pools: tuple[ImagePool, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the keys."""
        return fingerprint(self.keys)

    @property
    def tools(self) -> dict[str, str]:
        """The software versions that wrote the plan. The shards must be written with the same versions."""
        return {name: self.keys[name] for name in TOOL_KEYS}

    def to_json(self) -> str:
        """Return the text of `plan.json`."""
        return TypeAdapter(BuildPlan).dump_json(self, indent=1).decode() + "\n"


def load_plan(folder: Folder) -> BuildPlan | None:
    """Read the plan of an unfinished build in a folder; None if there is none.

    Raises:
        BuildError: If the plan cannot be read, for example because another release wrote it.
    """
    try:
        data = folder.read(PLAN_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return TypeAdapter(BuildPlan).validate_json(data)
    except ValidationError as error:
        raise BuildError(
            f"{folder.join(PLAN_NAME)}: is not a plan of this release; delete the folder and build again"
        ) from error


def fingerprint(keys: Mapping[str, str]) -> str:
    """Return the SHA-256 of plan keys, which does not depend on their order."""
    return hashlib.sha256(json.dumps(dict(keys), sort_keys=True).encode()).hexdigest()


def plan_keys(source: RawSource, *, splits: Sequence[str], images: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the named values that determine the bytes of a build.

    Paths and the number of workers are not among them.

    Args:
        source: The annotations.
        splits: The chosen splits, in canonical order.
        images: Digest of the names and sizes of all images.
        options: The options of the build that change its bytes.
    """
    return {
        "dataset": source.spec.dataset_id,
        "splits": " ".join(splits),
        **{name: str(value) for name, value in options.items()},
        **{f"source {file.name}": file.sha256 for file in source.sources},
        "image names and sizes": images,
        "tokenizer": " ".join(tokenizer.IDENTITY.values()),
        "format_version": str(FORMAT_VERSION),
        "schema": hashlib.sha256(str(MANIFEST_SCHEMA).encode()).hexdigest(),
        **installed_tools(),
    }


def installed_tools() -> dict[str, str]:
    """Return the values of `TOOL_KEYS` on this machine."""
    return {"refseg_version": __version__, "pyarrow": pa.__version__}


def differing_keys(before: Mapping[str, str], now: Mapping[str, str], *, but: Sequence[str] = ()) -> list[str]:
    """Describe the plan keys that differ, for example `seed: 0, now 1`. Keys in `but` are not compared."""
    names = [name for name in {**before, **now} if name not in but and before.get(name) != now.get(name)]
    return [f"{name}: {_shown(before.get(name, 'none'))}, now {_shown(now.get(name, 'none'))}" for name in names]


def _shown(value: str) -> str:
    """Return a value for a message. Hashes are shortened."""
    return value[:12] if len(value) == 64 else value
