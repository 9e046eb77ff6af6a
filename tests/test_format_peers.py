"""Readers of the `peers` extra, where they are installed: Energon over our tars, LitData over the Parquet export."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.export.run import ExportOptions, export_dataset
from pipelines.options import BuildOptions
from pipelines.verify import verify_dataset
from refseg.compat.refer import REFER

SAMPLE = Path(__file__).parents[1] / "manifests" / "sample"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The bundled sample, built."""
    build_dataset(
        BuildOptions(dataset="sample/ccby", annotations=SAMPLE, out=tmp_path / "built", workers=1, images_per_shard=2)
    )
    return tmp_path / "built"


@pytest.mark.filterwarnings("ignore")  # none of ours
def test_energon_reads_the_tars(built: Path, tmp_path: Path) -> None:
    energon = pytest.importorskip("megatron.energon")
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    command = [
        "energon", "prepare", "--non-interactive", "--num-workers", "1", "--sample-type", "CrudeWebdataset",
        "--split-parts", "val:test-.*.tar", str(built),
    ]  # fmt: skip
    program = shutil.which("energon", path=str(Path(sys.executable).parent))
    assert program is not None
    subprocess.run([program, *command[1:]], check=True, capture_output=True)

    @dataclass
    class Picture(energon.Sample):  # type: ignore[misc]
        image: Any
        facts: Any

    @energon.stateless
    def cook(sample: Any) -> Picture:
        return Picture(**energon.basic_sample_keys(sample), image=sample["jpg"], facts=sample["json"])

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [energon.Cooker(cook)]  # noqa: RUF012 - the library's form

    alone = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    found = energon.get_val_dataset(str(built), worker_config=alone, batch_size=None, task_encoder=Encoder())
    refer = REFER(built, "sample", "ccby")
    seen = []
    for sample in energon.get_loader(found):
        with Image.open(Path(refer.IMAGE_DIR, refer.Imgs[sample.facts["image_id"]]["file_name"])) as picture:
            expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(np.round(np.asarray(sample.image) * 255), expected)
        seen += [ref["ref_id"] for ref in sample.facts["refs"]]
    assert sorted(seen) == sorted(refer.getRefIds())
    # Energon puts its indexes beside the shards, which stay a whole dataset of ours.
    assert before == {name: (built / name).read_bytes() for name in before}
    assert verify_dataset(built) == []


@pytest.mark.filterwarnings("ignore")  # none of ours
def test_litdata_reads_the_parquet_export(built: Path, tmp_path: Path) -> None:
    litdata = pytest.importorskip("litdata")
    pytest.importorskip("polars")
    from litdata.streaming.item_loader import ParquetLoader

    export_dataset(ExportOptions(folder=built, to="parquet-hf", out=tmp_path / "hf"))
    index = tmp_path / "index"
    index.mkdir()
    litdata.index_parquet_dataset(str(tmp_path / "hf" / "data"), cache_dir=str(index))
    items = litdata.StreamingDataset(str(tmp_path / "hf" / "data"), item_loader=ParquetLoader(), index_path=str(index))

    refer = REFER(built, "sample", "ccby")
    seen = []
    for item in items:
        path = Path(refer.IMAGE_DIR, refer.Imgs[item["image_id"]]["file_name"])
        assert item["image"]["bytes"] == path.read_bytes()
        seen += [ref["ref_id"] for ref in item["refs"]]
    assert sorted(seen) == sorted(refer.getRefIds())
