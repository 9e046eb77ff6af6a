"""Mixes the training rows of several datasets into one dataset, without the images on which any of them evaluates.

A mix has manifests and indexes but no tars. The rows are copies of the members' rows and refer to the members' tars. If
an image has a ref in any split except `train` of any member, it is left out of the mix. big_vision's
`refcocox_combined` uses the same rule.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.build_folder import BUILD_FOLDER, hash_file, publish_bytes, scratch_files, scratch_folder
from pipelines.build_plan import TOOL_KEYS, differing_keys, fingerprint
from pipelines.mix_members import TRAIN, Member, open_members
from pipelines.pools import PoolTable, rename_shards
from refseg import __version__
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, ImagePool, ShardEntry
from refseg.dataset.index_file import write_indexes
from refseg.dataset.manifest_writer import write_table
from refseg.dataset.same_images import IDENTITY_COLUMNS, find_same_images, image_identities, unique_images
from refseg.dataset.schema import FORMAT_VERSION, MANIFEST_SCHEMA
from refseg.errors import BuildError, DatasetError, UsageError
from refseg.json_text import parse_json
from refseg.storage import Folder, LocalFolder, is_remote, open_folder

_PLAN = f"{BUILD_FOLDER}/mix.json"
_MOST_REPEATED = 1000  # largest ratio of refs in an epoch to refs in the members
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RULES = {
    False: "drop images of other splits: same image_xxh3, or same COCO image_id",
    True: "keep images of other splits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MixOptions:
    """The options of a mix.

    Attributes:
        members: Paths or URLs of finished datasets. A dataset without a train split adds no rows; its images are left
            out of the mix.
        out: Path or URL of the mix's folder; it is created if it does not exist.
        name: The mix is named mix/NAME; by default NAME is the last part of `out`.
        weights: For each dataset, how often an epoch contains each of the dataset's samples, on average; by default
            once.
        allow_leak: Keep training images on which a member evaluates. This is recorded in the mix, and reported with
            checkpoints and scores.

    Raises:
        UsageError: If a value is not allowed.
    """

    members: tuple[str | Path, ...]
    out: str | Path
    name: str | None = None
    weights: tuple[float, ...] | None = None
    allow_leak: bool = False

    def __post_init__(self) -> None:
        if not self.members:
            raise UsageError("found no dataset to mix, expected at least one folder")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise UsageError(
                f"--weights: found {len(self.weights)} weights for {len(self.members)} datasets, expected one for each"
            )
        for weight in self.weights or ():
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"--weights {weight}: expected numbers above 0; leave the dataset out instead")
        if not _NAME.fullmatch(self.dataset.removeprefix("mix/")):
            raise UsageError(
                f"{self.dataset}: is not a valid name, expected letters, digits, - and _; give another with --name"
            )

    @property
    def dataset(self) -> str:
        """The dataset id of the mix."""
        last = str(self.out).rstrip("/").rpartition("/")[2] if is_remote(self.out) else Path(self.out).resolve().name
        return f"mix/{last if self.name is None else self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixResult:
    """The result of mixing.

    Attributes:
        descriptor: Descriptor of the mix. The field `mix` has the numbers of kept and dropped refs of each member.
        was_complete: True if an earlier run had finished the mix and nothing was changed.
    """

    descriptor: Descriptor
    was_complete: bool


def mix_datasets(options: MixOptions) -> MixResult:
    """Mix datasets, or check a finished mix. The same members give the same bytes.

    If a call is killed, the next call starts again. No reader accepts the folder of an unfinished mix as a dataset.

    Raises:
        UsageError: If a member cannot be mixed, or the folder holds files of another kind.
        DatasetError: If a member is unfinished or damaged, members have different tokenizers or mask rules, or no
            training ref is left.
        BuildError: If the folder holds an unfinished mix of other members or options.
        OSError: If the folder cannot be written.
    """
    out = open_folder(options.out)
    members = open_members(options.members, options.weights or (1.0,) * len(options.members))
    _refuse_absurd_weights(members)
    pools = PoolTable(out.address)
    for member in members:
        member.pool_names = pools.add(member.dataset)
    keys = _plan_keys(options, members, [pool for pool in pools.pools if pool.tars])
    if out.size(DESCRIPTOR_NAME) is not None:
        return MixResult(descriptor=_check_finished(out, keys), was_complete=True)
    _check_unfinished(out, keys)

    protected = [images for member in members for images in _read_eval_images(member)]
    if isinstance(out, LocalFolder):
        (out.path / BUILD_FOLDER).mkdir(parents=True, exist_ok=True)
    plan = json.dumps({"format": "refseg-mix", "keys": keys}, indent=1) + "\n"
    publish_bytes(out, plan.encode(), _PLAN)  # first, because it identifies the folder as an unfinished mix
    entries: list[ShardEntry] = []
    used: set[str] = set()
    for member in members:
        for entry in member.train_entries:
            rows = _choose_rows(member, entry, protected, allow_leak=options.allow_leak)
            if rows.num_rows:
                used |= set(rows["shard"].unique().to_pylist())
                entries.append(_write_shard(rows, f"{TRAIN}-{len(entries):05d}", out))
    if not entries:
        out.remove(BUILD_FOLDER)
        raise DatasetError(
            f"{out}: no training ref is left of {', '.join(member.descriptor.dataset for member in members)}: each "
            "training image is also in another split, or no member has a train split; expected at least one ref"
        )
    descriptor = Descriptor(
        dataset=options.dataset,
        refseg_version=__version__,
        plan_fingerprint=fingerprint(keys),
        mask_rule=members[0].descriptor.mask_rule,
        tokenizer=members[0].descriptor.tokenizer,
        num_rejects=0,
        shards=tuple(entries),
        sources=(),  # recorded in the members; two members may have different files with the same name
        licences=tuple(dict.fromkeys(text for member in members for text in member.descriptor.licences)),
        plan_keys=keys,
        counts_accepted=any(member.descriptor.counts_accepted for member in members),
        image_pools=tuple(
            replace(pool, tars=tuple(sorted(pool.tars, key=lambda tar: tar.name))) for pool in pools.used(used)
        ),
        mix=tuple(member.summary(allow_leak=options.allow_leak) for member in members),
        leaks_allowed=options.allow_leak,
    )
    with scratch_folder(out) as stage:
        descriptor = replace(descriptor, indexes=write_indexes(out, descriptor, stage))
    publish_bytes(out, descriptor.to_json().encode(), DESCRIPTOR_NAME)
    out.remove(BUILD_FOLDER)
    return MixResult(descriptor=descriptor, was_complete=False)


def _refuse_absurd_weights(members: Sequence[Member]) -> None:
    """Refuse weights that would make an epoch extremely long, because they are probably a mistake."""
    refs = [sum(entry.num_refs for entry in member.train_entries) for member in members]
    wanted = sum(member.weight * number for member, number in zip(members, refs, strict=True))
    if wanted > _MOST_REPEATED * sum(refs):
        raise UsageError(
            f"--weights {' '.join(f'{member.weight:g}' for member in members)}: an epoch would have {wanted:,.0f} refs "
            f"of {sum(refs):,} different ones, expected at most {_MOST_REPEATED:,} times as many; a weight is the "
            "number of times that an epoch contains each sample of a dataset"
        )


def _plan_keys(options: MixOptions, members: Sequence[Member], pools: Sequence[ImagePool]) -> dict[str, str]:
    """Return the named values that determine the bytes of a mix, including the paths of the members' tars."""
    return {
        "dataset": options.dataset,
        "members": " ".join(member.descriptor.dataset for member in members),
        **{f"digest of {member.descriptor.dataset}": member.descriptor.digest for member in members},
        **{f"weight of {member.descriptor.dataset}": repr(member.weight) for member in members},
        **{f"path of {pool.name}": pool.path for pool in pools},
        "rule": _RULES[options.allow_leak],
        "format_version": str(FORMAT_VERSION),
        "schema": hashlib.sha256(str(MANIFEST_SCHEMA).encode()).hexdigest(),
        "refseg_version": __version__,
        "pyarrow": pa.__version__,
    }


def _check_finished(out: Folder, keys: Mapping[str, str]) -> Descriptor:
    """Compare a finished mix with the options, and the files with the descriptor."""
    mix = BuiltDataset.open(out.address)
    descriptor = mix.descriptor
    if not descriptor.mix:
        raise UsageError(f"--out {out}: found {descriptor.dataset}, expected a new or empty folder for the mix")
    _refuse_other_inputs(out, descriptor.plan_keys, keys, but=TOOL_KEYS)
    mix.read(["image_id"])
    out.remove(BUILD_FOLDER)  # it is left if the process was killed after it wrote the descriptor
    return descriptor


def _check_unfinished(out: Folder, keys: Mapping[str, str]) -> None:
    """Refuse a folder that holds files of another kind, or an unfinished mix of other members."""
    if isinstance(out, LocalFolder) and out.path.exists() and not out.path.is_dir():
        raise UsageError(f"--out {out}: is a file, expected a folder for the mix")
    try:
        plan = parse_json(out.read(_PLAN))
        begun_with = plan["keys"] if plan["format"] == "refseg-mix" else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        begun_with = None
    if begun_with is not None:
        _refuse_other_inputs(out, begun_with, keys)
        return
    if isinstance(out, LocalFolder):
        # If a mix was killed before the plan was written, the folder contains only temporary files.
        found = [path.relative_to(out.path) for path in (*out.path.glob("*"), *out.path.glob(f"{BUILD_FOLDER}/*"))]
        foreign = [str(path) for path in found if str(path) != BUILD_FOLDER and not path.name.startswith("tmp-")]
    else:
        foreign = ["files"] if out.exists() else []
    if foreign:
        raise UsageError(f"--out {out}: found {foreign[0]} but no mix, expected a new or empty folder for the mix")


def _refuse_other_inputs(
    out: Folder, before: Mapping[str, str], now: Mapping[str, str], *, but: Sequence[str] = ()
) -> None:
    differing = differing_keys(before, now, but=but)
    if differing:
        raise BuildError(
            f"{out}: was mixed or started with other inputs ({'; '.join(differing)}); "
            "give the same inputs or another --out, or delete the folder"
        )


def _read_eval_images(member: Member) -> Iterator[tuple[str, pa.Table]]:
    """Yield `<dataset id> <split>` and the images of each split of a member, except `train`."""
    for split in member.dataset.splits:
        if split != TRAIN:
            rows = member.dataset.read(IDENTITY_COLUMNS, member.dataset.entries_of(split))
            yield f"{member.descriptor.dataset} {split}", unique_images(image_identities(rows))


def _choose_rows(
    member: Member, entry: ShardEntry, protected: Sequence[tuple[str, pa.Table]], *, allow_leak: bool
) -> pa.Table:
    """Return the rows of a shard that the mix keeps, and add them to the member's counts.

    The rows refer to the mix's pools.
    """
    rows = member.dataset.read(MANIFEST_SCHEMA.names, [entry])
    images = image_identities(rows)
    leaks = pc.is_null(rows["image_id"])  # False for all rows, because the column has no nulls
    for split, of_split in protected:
        same = find_same_images(images, of_split)
        if number := _num_images(rows.filter(same)):
            member.found_in[split] += number
        leaks = pc.or_(leaks, same)
    member.shared_images += _num_images(rows.filter(leaks))
    if not allow_leak:
        member.dropped_refs += pc.sum(leaks).as_py() or 0
        rows = rows.filter(pc.invert(leaks))
    member.num_refs += rows.num_rows
    return rename_shards(rows, member.pool_names)


def _write_shard(rows: pa.Table, name: str, out: Folder) -> ShardEntry:
    """Write and publish a manifest, and return the descriptor's entry for it."""
    with scratch_files(out, f"{name}.parquet") as (path,):
        rows_sha256 = write_table(path, rows)
        entry = ShardEntry(
            name=name,
            split=TRAIN,
            num_images=_num_images(rows),
            num_samples=0,
            num_refs=rows.num_rows,
            num_sentences=pc.sum(pc.list_value_length(rows["sentences"])).as_py(),
            tar_bytes=0,
            tar_sha256="",
            parquet_bytes=path.stat().st_size,
            parquet_sha256=hash_file(path),
            rows_sha256=rows_sha256,
        )
        out.publish(path, f"{name}.parquet")
    return entry


def _num_images(rows: pa.Table) -> int:
    number: int = pc.count_distinct(rows["image_id"]).as_py()
    return number
