"""A dataset for the pages that show one."""

import pickle
from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy

_EVIL = "</script><script>document.title='run'</script><img src=x onerror=alert(1)> & <!--"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 toy scenes of 96 x 128 pixels: one sentence is markup, one ref was rejected."""
    folder = tmp_path_factory.mktemp("browse")
    draw_toy(folder / "source", num_images=24, seed=0, image_size=(96, 128))
    path = folder / "source/toy/refs(refseg).p"
    refs = pickle.loads(path.read_bytes())
    train = [ref for ref in refs if ref["split"] == "train"]
    train[0]["sentences"][0]["sent"] = _EVIL
    train[1]["image_id"] = 999_999
    path.write_bytes(pickle.dumps(refs))
    build_dataset(
        BuildOptions(
            dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1,
            images_per_shard=8, on_bad_sample="skip",
        )
    )  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="session")
def evil() -> str:
    """The sentence of `dataset` that is markup."""
    return _EVIL
