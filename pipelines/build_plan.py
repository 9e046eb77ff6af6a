"""The plan of a build: which shards there will be, and the fingerprint of all that the bytes depend on."""

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
"""Keys that may differ when a finished dataset is looked at again: they change bytes, not content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard to build.

    Attributes:
        name: For example `train-00000`.
        split: The split of all its refs.
        num_samples: Images in it.
        samples_sha256: SHA-256 of the file that `check_records` wrote, in `SAMPLES_FOLDER`.
    """

    name: str
    split: str
    num_samples: int
    samples_sha256: str

    @property
    def samples_name(self) -> str:
        """The file of its checked records in the dataset's folder."""
        return f"{SAMPLES_FOLDER}/{self.name}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What will be built, and all that the descriptor will say besides what shards turn out to be.

    Attributes:
        dataset: Dataset id.
        keys: All that the bytes depend on, by name.
        mask_rule: `union` or `legacy`.
        shards: In the order of the descriptor: splits in canonical order, then by number.
        rejects: Refs with faults in the annotations, and those without an image.
        sources: Annotation files read.
        licences: Of the images in use.
        source_counts: By split, what the sources hold.
        counts_accepted: True if those are not the published ones, and the user accepted that.
        stored_images: Size to store pictures at; None: the source's bytes.
        image_pools: Other datasets whose tars hold images of this one.
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
        """Those of the keys that say what wrote the plan and has to write the shards."""
        return {name: self.keys[name] for name in TOOL_KEYS}

    def to_json(self) -> str:
        """Text of `plan.json`."""
        return TypeAdapter(BuildPlan).dump_json(self, indent=1).decode() + "\n"


def load_plan(folder: Folder) -> BuildPlan | None:
    """The plan of a build that was begun in a folder, None if there is none.

    Raises:
        BuildError: If it cannot be read: it is another release's.
    """
    try:
        data = folder.read(PLAN_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return TypeAdapter(BuildPlan).validate_json(data)
    except ValidationError as error:
        raise BuildError(
            f"{folder.join(PLAN_NAME)}: is no plan of this release; delete the folder and build again"
        ) from error


def fingerprint(keys: Mapping[str, str]) -> str:
    """SHA-256 of plan keys, whatever their order."""
    return hashlib.sha256(json.dumps(dict(keys), sort_keys=True).encode()).hexdigest()


def plan_keys(source: RawSource, *, splits: Sequence[str], images: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Name all that the bytes of a build depend on; the number of workers and all paths are left out.

    Args:
        source: The annotations.
        splits: The chosen splits, in canonical order.
        images: Digest of the names and sizes of all images.
        options: Those of the build that change bytes.
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
    """The `TOOL_KEYS` of this machine."""
    return {"refseg_version": __version__, "pyarrow": pa.__version__}


def differing_keys(before: Mapping[str, str], now: Mapping[str, str], *, but: Sequence[str] = ()) -> list[str]:
    """Say in words which plan keys differ, for example `seed: 0, now 1`; those named in `but` are not looked at."""
    names = [name for name in {**before, **now} if name not in but and before.get(name) != now.get(name)]
    return [f"{name}: {_shown(before.get(name, 'none'))}, now {_shown(now.get(name, 'none'))}" for name in names]


def _shown(value: str) -> str:
    """The start of a hash; options whole."""
    return value[:12] if len(value) == 64 else value
