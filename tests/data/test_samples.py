import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.samples import RefDataset
from refseg.data.transforms import Geometry
from refseg.errors import UsageError
from refseg.reading import Reading


@pytest.fixture
def train(train_index: ManifestIndex) -> RefDataset:
    return RefDataset(train_index)


def test_a_sample_is_what_the_manifest_and_the_jpeg_say(train: RefDataset, dataset: Path) -> None:
    row = pq.read_table(dataset / "train-00001.parquet").to_pylist()[0]
    first = pq.read_metadata(dataset / "train-00000.parquet").num_rows
    data = (dataset / row["shard"]).read_bytes()[row["image_offset"] :][: row["image_bytes"]]
    values = np.arange(len(row["mask"]["counts"])) % 2
    mask = np.repeat(values, row["mask"]["counts"]).reshape(row["width"], row["height"]).T

    sample = train[first]

    assert np.array_equal(sample.mask.numpy(), mask.astype(bool))
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(sample.image.permute(1, 2, 0).numpy() - decoded).max() <= 2  # two builds of libjpeg
    assert sample.sentences == tuple(sentence["sent"] for sentence in row["sentences"])
    assert sample.sentence_exists == tuple(sentence["exists"] for sentence in row["sentences"])
    assert sample.ids == (
        "toy/refseg", "train", row["ref_id"], row["image_id"], tuple(s["sent_id"] for s in row["sentences"]),
    )  # fmt: skip
    assert (sample.category, sample.file_name) == ("thing", row["file_name"])


def test_every_ref_comes_once_in_the_order_of_the_manifests(train: RefDataset) -> None:
    assert len(train) == 21
    assert [sample.ids.ref_id for sample in train] == train.index.ref_id.tolist()
    assert sum(len(sample.sentences) for sample in train) == 42


def test_positions_count_from_the_end_too_and_end_somewhere(train: RefDataset) -> None:
    assert train[-1].ids == train[20].ids
    assert train[np.int64(3)].ids == train[3].ids
    for position in (21, -22):
        with pytest.raises(IndexError, match=rf"found no sample at position {position}, expected one of 21 samples"):
            train[position]


def test_torchs_own_loader_reads_samples_with_workers(train: RefDataset) -> None:
    batches = list(DataLoader(train, batch_size=5, collate_fn=list, num_workers=1, multiprocessing_context="fork"))

    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 1]
    assert [sample.ids for batch in batches for sample in batch] == [sample.ids for sample in train]


def test_the_loader_packs_the_same_refs_at_one_size(train: RefDataset) -> None:
    geometry = Geometry(kind="stretch", size=(64, 96))
    loader = train.loader(batch_size=4, geometry=geometry, shuffle=False, remainder="pad")
    batches = list(loader)

    assert len(batches) == 6
    assert batches[0].images.shape == (4, 3, 64, 96)
    rows = torch.cat([batch.row_index[~batch.is_pad] for batch in batches])
    assert rows.tolist() == list(range(21))


def test_a_loader_takes_a_reading_or_its_attributes_and_not_parts_of_two(train: RefDataset) -> None:
    geometry = Geometry(kind="stretch", size=(32, 32))
    options: dict[str, Any] = {"global_batch": 2, "shuffle": False, "num_tokens": 8}
    reading = Reading(geometry="stretch", input_size=(32, 32), image_mean=geometry.mean, **options)

    assert RefLoader(train.index, geometry=geometry, **options).reading == reading
    for given in ({"reading": reading, "num_tokens": 4}, {"reading": reading, "geometry": geometry}, options):
        with pytest.raises(UsageError, match="takes either a Reading, or a geometry with attributes of a Reading"):
            RefLoader(train.index, **given)


def test_the_loader_says_what_does_not_fit(train: RefDataset) -> None:
    with pytest.raises(UsageError, match="a global batch of 5 cannot be divided evenly among 2 processes"):
        train.loader(batch_size=5, geometry=Geometry(kind="letterbox", size=(64, 64)), world_size=2)


def test_its_repr_says_what_it_holds(train: RefDataset) -> None:
    assert repr(train) == "<RefDataset toy/refseg train: 21 refs, 42 sentences, 11 images>"
