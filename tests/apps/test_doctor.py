"""The diagnosis, from made-up times whose answer is plain, and from a stage that is really slow."""

import importlib.metadata
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.apps.doctor import Measured, diagnose, examine
from refseg.apps.environment import describe_environment
from refseg.apps.stage_times import time_delivery
from refseg.data.index import ManifestIndex
from refseg.reading import Reading

# A worker takes 10 ms for a sample, of which decoding takes 6.
MEASURED = Measured(
    stages={
        "read": 0.001, "hash": 0.0, "decode": 0.006, "resize": 0.001, "masks": 0.001, "tokens and packing": 0.0005,
        "from the cache": 0.0005, "hand-off": 0.0005, "receive": 0.0001,
    },
    disk_read=0.002, expressions=1.0, delivered=190.0, needed=None, num_workers=2, num_cores=8, is_remote=False,
    by_image=False, num_images=1000, decoded_bytes=2_500_000_000, cached_share=0.0,
    store="letterbox:480x480",
)  # fmt: skip


def with_stages(**seconds: float) -> Measured:
    names = {"tokens": "tokens and packing", "hand_off": "hand-off", "to_device": "to device"}
    stages = {**MEASURED.stages, **{names.get(name, name): value for name, value in seconds.items()}}
    return replace(MEASURED, stages=stages, num_workers=8)


def test_rates_follow_from_the_times() -> None:
    assert MEASURED.worker_seconds == pytest.approx(0.01)
    assert MEASURED.rate(1) == pytest.approx(100)
    assert MEASURED.rate(8) == MEASURED.rate(20) == pytest.approx(800)  # there are 8 cores
    assert with_stages(receive=0.01).rate(8) == pytest.approx(100)  # one process takes what all workers give
    threads = {name: seconds for name, seconds in MEASURED.stages.items() if name not in ("hand-off", "receive")}
    assert replace(MEASURED, stages=threads).worker_seconds == pytest.approx(0.0095)  # nothing is handed over


def test_a_loader_that_is_fast_enough_needs_nothing() -> None:
    found = diagnose(replace(MEASURED, needed=95.0))
    assert (found.bottleneck, found.remedies) == ("model", ())
    assert found.verdict == "the loader gives 2.0 times the 95.0 samples/s that the model takes"
    assert "only just" in diagnose(replace(MEASURED, needed=189.0)).verdict


def test_idle_cores_are_named_first_with_as_many_workers_as_it_takes() -> None:
    # 400 samples/s and a tenth more are 4.4 cores of 100 samples/s.
    found = diagnose(replace(MEASURED, needed=400.0))
    assert found.bottleneck == "number of workers"
    assert found.remedies[0].startswith("data.num_workers = 5: about 500.0 samples/s")
    assert found.verdict == "the loader gives 190.0 samples/s, the model takes 400.0; most time goes into decode"
    assert diagnose(MEASURED).remedies[0].startswith("data.num_workers = 8: ")


def test_more_than_all_cores_can_do_is_said() -> None:
    found = diagnose(replace(MEASURED, needed=2000.0))
    assert "with all 8 cores it would be about 800.0" in found.verdict


def test_decoding_is_shared_cached_or_made_smaller() -> None:
    found = diagnose(replace(MEASURED, num_workers=8))
    assert found.bottleneck == "decode"
    share, cache, smaller = found.remedies
    # Of 10 ms, 8 are an image's: shared by 4, 2 + 8 / 4 = 4 ms remain; cached, 2 ms and the 0.5 of the cache.
    assert share.startswith("data.sampling = images with data.expressions_per_image = 4")
    assert "about 2.5 times the expressions/s" in share
    assert cache.startswith("data.cache_gigabytes = 3: all 1,000 images stay resized in a file of this machine")
    assert "about 4.0 times the samples/s" in cache
    assert smaller.startswith("refseg build-shards --store letterbox:480x480: pictures at this size decode faster")
    assert not any("--store" in line for line in diagnose(replace(MEASURED, store="")).remedies)
    assert not any("expressions_per_image" in line for line in diagnose(replace(MEASURED, by_image=True)).remedies)


def test_the_cache_takes_the_place_of_decoding_for_what_it_holds() -> None:
    # 2 ms for expressions and hand-off; of the image's 8 ms and the cache's 0.5 ms a half each: 6.25 ms.
    half = replace(MEASURED, cached_share=0.5, num_workers=8)
    assert half.worker_times["decode"] == pytest.approx(0.003)
    assert half.worker_seconds == pytest.approx(0.00625)
    assert half.if_cached.worker_seconds == pytest.approx(0.0025)
    cache = diagnose(half).remedies[1]
    assert cache.startswith("data.cache_gigabytes = 3: all 1,000 images")  # more of it still helps
    assert "about 2.5 times the samples/s" in cache
    whole = diagnose(half.if_cached)
    assert whole.bottleneck == "masks"
    assert not any("cache_gigabytes" in line for line in whole.remedies)


@pytest.mark.parametrize(
    ("found", "bottleneck", "remedy"),
    [
        (with_stages(read=0.05), "read", "put the shards on a faster disk"),
        (replace(with_stages(read=0.05), is_remote=True), "read", "let the cache fill (an epoch), or give it a larger"),
        (with_stages(masks=0.05), "masks", "a smaller data.input_size, or fewer expressions of an image"),
        (with_stages(hand_off=0.05), "hand-off", "data.worker_kind = threads: nothing is handed"),
        (with_stages(to_device=0.05), "to device", "fewer bytes for each sample"),
    ],
)
def test_each_stage_has_its_remedy(found: Measured, bottleneck: str, remedy: str) -> None:
    diagnosis = diagnose(found)
    assert diagnosis.bottleneck == bottleneck
    assert diagnosis.remedies[0].startswith(remedy)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ManifestIndex:
    folder = tmp_path_factory.mktemp("doctor")
    draw_toy(folder / "source", num_images=12, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1))
    return ManifestIndex.open(folder / "shards", ["train"])


def load(**options: Any) -> Reading:
    return Reading(**{"input_size": (64, 64), "global_batch": 4, "num_workers": 1, "remainder": "pad"} | options)


@pytest.fixture
def slow_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding takes so long that no other stage does, whatever else this machine does meanwhile."""
    from refseg.data.decode import decode_rgb

    def slow(data: Any) -> Any:
        time.sleep(0.05)
        return decode_rgb(data)

    for place in ("refseg.apps.stage_times.decode_rgb", "refseg.data.index.decode_rgb"):
        monkeypatch.setattr(place, slow)


@pytest.mark.usefixtures("slow_decoder")
def test_a_slow_decoder_is_found(index: ManifestIndex) -> None:
    found = examine(index, load(), seconds=0.4, needed=1000.0)

    assert found.stages["decode"] >= 0.025  # some images are twice in a batch, and decoded once
    assert max(found.stages, key=lambda name: found.stages[name]) == "decode"
    assert found.delivered < 100
    assert diagnose(replace(found, num_cores=1)).bottleneck == "decode"


@pytest.mark.usefixtures("slow_decoder")
def test_a_cache_that_holds_all_is_filled_before_it_is_timed(
    index: ManifestIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from refseg.data.index import ManifestIndex as Index

    decoded: list[int] = []
    decode = Index.decode_image
    monkeypatch.setattr(Index, "decode_image", lambda self, image: decoded.append(image) or decode(self, image))
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    workload = load(cache_gigabytes=0.01)

    found = examine(index, workload, seconds=0.4)

    assert found.cached_share == 1
    assert 0 < found.stages["from the cache"] < found.stages["decode"]
    assert found.worker_seconds < replace(found, cached_share=0.0).worker_seconds
    assert len(list((tmp_path / "decoded").iterdir())) == 1
    decoded.clear()
    time_delivery(index, workload, seconds=0.2)
    assert decoded == []
    few = examine(index, load(cache_gigabytes=3 * 64 * 64 * 5 / 1e9), seconds=0.2)
    assert few.cached_share == 5 / index.num_images


def test_expressions_are_counted_by_image(index: ManifestIndex) -> None:
    found = examine(index, load(sampling="images", expressions_per_image="all", num_workers=0), seconds=0.2)
    assert found.expressions == pytest.approx(index.num_sentences / index.num_images, rel=0.5)
    assert found.expressions > 1
    assert found.needed is None
    assert found.store == "letterbox:64x64"
    assert found.delivered > 0
    large = load(geometry="stretch", input_size=(96, 96), num_workers=0)  # the pictures' own size: nothing to gain
    assert examine(index, large, seconds=0.1).store == ""


def test_a_remote_dataset_is_timed_too(index: ManifestIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    remote = ManifestIndex.open(f"file://{index.folder}", ["train"])
    found = examine(remote, load(num_workers=0), seconds=0.2)
    assert found.is_remote
    assert found.disk_read is None
    assert found.stages["read"] > 0


def test_the_environment_names_versions_cores_and_the_disk(tmp_path: Path) -> None:
    facts = describe_environment(tmp_path)
    assert facts["packages"]["torch"]
    assert facts["cores"] >= 1
    assert facts["disk"]["write_megabytes_per_second"] > 0
    assert "dev" in facts["extras"]


def test_what_is_not_installed_is_said_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.6", "nowhere>=1", 'numpy>=1; extra == "some"', 'absent>=1; extra == "none"']
    lines += ['refseg[some,none]; extra == "all"', 'refseg[some]; extra == "both"', 'pillow; extra == "both"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)

    facts = describe_environment(tmp_path)

    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert facts["packages"]["nowhere"] == "missing"
    assert facts["extras"] == {"some": True, "none": False, "all": False, "both": True}
    assert list(tmp_path.iterdir()) == []
