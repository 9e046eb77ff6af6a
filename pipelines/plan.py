"""Records to shard tasks: which image goes into which shard, and the fingerprint of all that the bytes depend on."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.images import ImageFile
from pipelines.sources.raw import RawDataset
from refseg import __version__, tokenizer
from refseg.schema import FORMAT_VERSION, MANIFEST_SCHEMA, DatasetSpec, RefRecord

TOOL_KEYS = ("pyarrow", "refseg_version")
"""Keys that may differ when a finished dataset is looked at again: they change bytes, not content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTask:
    """One sample to write.

    Attributes:
        key: Of the sample in the tar, unique in the dataset.
        image: The file, and the size it must still have.
        records: Refs of the image in this split, by `ref_id`.
    """

    key: str
    image: ImageFile
    records: tuple[RefRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """All that a worker needs to build one shard, on any machine that sees the two folders.

    Attributes:
        name: Of the shard, for example `train-00000`.
        split: The split of all its refs.
        folder: The dataset's folder.
        fingerprint: Of the plan.
        skip_bad: Reject the refs of a bad image and go on, instead of failing.
        samples: In the order of the tar.
    """

    name: str
    split: str
    folder: Path
    fingerprint: str
    skip_bad: bool
    samples: tuple[SampleTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be built.

    Attributes:
        keys: All that the bytes depend on, by name.
        tasks: In the order of the descriptor: splits in canonical order, then by number.
    """

    keys: dict[str, str]
    tasks: tuple[ShardTask, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the keys."""
        return fingerprint(self.keys)

    def to_json(self) -> str:
        """Text of `plan.json`."""
        shards = [
            {"name": task.name, "split": task.split, "keys": [sample.key for sample in task.samples]}
            for task in self.tasks
        ]
        fields = {"format": "refseg-plan", "fingerprint": self.fingerprint, "keys": self.keys, "shards": shards}
        return json.dumps(fields, indent=1) + "\n"


def fingerprint(keys: Mapping[str, str]) -> str:
    """SHA-256 of plan keys, whatever their order."""
    return hashlib.sha256(json.dumps(dict(keys), sort_keys=True).encode()).hexdigest()


def plan_keys(
    raw: RawDataset,
    files: Mapping[int, ImageFile | None],
    *,
    splits: Sequence[str],
    images_per_shard: int,
    seed: int,
    mask_rule: str,
) -> dict[str, str]:
    """Name all that the bytes of a build depend on; the number of workers and all paths are left out.

    Args:
        raw: The annotations.
        files: By image id, every image the chosen splits refer to; None where there is no file.
        splits: The chosen splits, in canonical order.
        images_per_shard: At most so many samples in a tar.
        seed: Of the order of images.
        mask_rule: `union` or `legacy`.
    """
    images = [[image_id, file and file.path.name, file and file.num_bytes] for image_id, file in sorted(files.items())]
    return {
        "dataset": raw.spec.dataset_id,
        "splits": " ".join(splits),
        "images_per_shard": str(images_per_shard),
        "seed": str(seed),
        "mask_rule": mask_rule,
        **{f"source {source.name}": source.sha256 for source in raw.sources},
        "image names and sizes": _digest(json.dumps(images)),
        "tokenizer": " ".join(tokenizer.IDENTITY.values()),
        "format_version": str(FORMAT_VERSION),
        "schema": _digest(str(MANIFEST_SCHEMA)),
        "refseg_version": __version__,
        "pyarrow": pa.__version__,
    }


def differing_keys(before: Mapping[str, str], now: Mapping[str, str], *, but: Sequence[str] = ()) -> list[str]:
    """Say in words which plan keys differ, for example `seed: 0, now 1`; those named in `but` are not looked at."""
    names = [name for name in {**before, **now} if name not in but and before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name, 'none'):.12}, now {now.get(name, 'none'):.12}" for name in names]


def make_plan(
    spec: DatasetSpec,
    records: Sequence[RefRecord],
    files: Mapping[int, ImageFile],
    *,
    keys: dict[str, str],
    folder: Path,
    images_per_shard: int,
    seed: int,
    skip_bad: bool,
) -> Plan:
    """Assign images to shards: the images of a split in the order of their seeded hashes, cut evenly.

    Args:
        spec: Dataset and partition.
        records: Of all chosen splits, any order.
        files: By image id, for every image of `records`.
        keys: From `plan_keys`.
        folder: The dataset's folder.
        images_per_shard: At most so many samples in a tar.
        seed: Of the order.
        skip_bad: See `ShardTask`.
    """
    by_image: dict[str, dict[int, list[RefRecord]]] = {split: defaultdict(list) for split in spec.splits}
    for record in records:
        by_image[record.split][record.image_id].append(record)
    tasks: list[ShardTask] = []
    times_used: dict[int, int] = defaultdict(int)
    for split, images in by_image.items():
        samples: list[SampleTask] = []
        for image_id in sorted(images, key=lambda image_id: _digest(f"{seed}:{image_id}")):
            # The same picture in a second split (refcocog/google) needs a key of its own.
            suffix = f"_{times_used[image_id]}" if times_used[image_id] else ""
            times_used[image_id] += 1
            samples.append(
                SampleTask(
                    key=f"{image_id:012d}{suffix}",
                    image=files[image_id],
                    records=tuple(sorted(images[image_id], key=lambda record: record.ref_id)),
                )
            )
        num_shards = -(-len(samples) // images_per_shard)
        for number in range(num_shards):
            start, end = (len(samples) * edge // num_shards for edge in (number, number + 1))
            tasks.append(
                ShardTask(
                    name=f"{split}-{number:05d}",
                    split=split,
                    folder=folder,
                    fingerprint=fingerprint(keys),
                    skip_bad=skip_bad,
                    samples=tuple(samples[start:end]),
                )
            )
    return Plan(keys=keys, tasks=tuple(tasks))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
