"""Datasets of other writers with correct hashes: content that the format forbids is refused before it is used."""

import errno
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.stats import stats_dataset
from pipelines.verify import verify_dataset
from refseg.data.index import ManifestIndex
from refseg.data.jpegs import Jpegs
from refseg.data.samples import RefDataset
from refseg.data.transforms import Geometry
from refseg.data.webdataset import stream, tar_urls
from refseg.dataset.descriptor import load_descriptor
from refseg.dataset.image_pools import host_of
from refseg.dataset.index_file import write_indexes
from refseg.dataset.manifest_reader import read_checked, row_rules
from refseg.dataset.schema import MANIFEST_SCHEMA
from refseg.errors import DatasetError, ImageError, RefsegError, StorageError
from refseg.jpeg_header import jpeg_size
from refseg.storage import open_folder

from .conftest import Picture, Ref, draw_jpeg, grid_pictures, write_descriptor, write_overlay

Write = Callable[..., Path]
Edit = Callable[..., None]
GEOMETRY = Geometry(kind="letterbox", size=(16, 16))
SHARD = "train-00000"


def rewrite(folder: Path, edit_descriptor: Edit, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """Change the rows of the first shard, and correct the hashes in the descriptor."""
    path = folder / f"{SHARD}.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    found = {"parquet_bytes": path.stat().st_size, "parquet_sha256": sha256}
    edit_descriptor(folder, lambda content: content["shards"][0].update(found))
    return folder


def put(value: Any, *path: str | int) -> Callable[[list[dict[str, Any]]], None]:
    """Replace one value of the third row, which is the second row of its image."""

    def change(rows: list[dict[str, Any]]) -> None:
        place: Any = rows[2]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


SIDE = "found size .* (height x width), expected 1 to 65,500 pixels a side"
LIES = "found an image of .* expected a sample of header, image, header and JSON within its tar"
RUNS = "found a mask of .* expected run lengths of the image's size, none but the first empty"


@pytest.mark.parametrize(("change", "message"), [
    (put(None, "mask"), "found no value of mask"),
    (put(None, "mask", "counts"), "found no value of mask.counts"),
    (put([], "mask", "counts"), RUNS),
    (put([5, 5], "mask", "counts"), RUNS),
    (put([0, 900, 0, 300], "mask", "counts"), RUNS),
    (put([30, 40], "mask", "size"), RUNS),
    (put([], "mask", "size"), RUNS),
    (put([1200], "mask", "counts"), "found no_target False and a mask without pixels"),
    (put(True, "no_target"), "found no_target"),
    (put(None, "sentences"), "found no value of sentences"),
    (put([], "sentences"), "found no sentence, expected at least one"),
    (put(None, "sentences", 0, "sent"), "found no value of sentences.sent"),
    (put(" ", "sentences", 0, "sent"), "found a sentence without text"),
    (put([], "sentences", 0, "token_ids"), "found fewer than two token_ids"),
    (put([49406, 5], "sentences", 0, "token_ids"), "found token_ids that are not those of a sentence"),
    (put([49406, 60000, 49407], "sentences", 0, "token_ids"), "found token_ids that are not those of a sentence"),
    (put(0, "height"), SIDE),
    (put(-7, "height"), SIDE),
    (put(65_501, "width"), SIDE),
    (lambda rows: [row.update(height=32_768, width=32_768) for row in rows], SIDE),
    (put(-1000, "image_offset"), LIES),
    (put(0, "image_offset"), LIES),
    (put(513, "image_offset"), LIES),
    (put(2**62, "image_offset"), LIES),
    (put(2**45, "sample_bytes"), LIES),
    (put(-5, "sample_bytes"), LIES),
    (put(0, "image_bytes"), LIES),
    (put("../train-00000.tar", "shard"), "found shard '../train-00000.tar', expected train-00000.tar"),
    (put("toy/../x.tar", "shard"), "found shard 'toy/../x.tar'"),
    (put("val", "split"), "found split val, expected train"),
    (put("x", "dataset"), "found dataset x/refseg, expected toy/refseg"),
    (put(100, "ref_id"), "found the ref_id of another row"),
    (put(1000, "sentences", 0, "sent_id"), "found the sent_id of another sentence of the split"),
    (put("?", "sample_xxh3"), "found sample_xxh3 '.', expected 16 hexadecimal digits"),
    (put("another.jpg", "file_name"), "found another file_name than in the row before"),
    (lambda rows: rows.insert(0, rows.pop(2)), "found an image that earlier rows also have"),
])  # fmt: skip
def test_rows_that_the_format_forbids_are_refused_by_every_reader(
    change: Callable[[list[dict[str, Any]]], None], message: str, write: Write, edit_descriptor: Edit, tmp_path: Path
) -> None:
    folder = rewrite(write(tmp_path / "d", {SHARD: grid_pictures(0, 4)}), edit_descriptor, change)
    pattern = rf"ref \d+: {message}".replace("(height x width)", r"\(height x width\)")

    with pytest.raises(DatasetError, match=pattern):
        write_indexes(open_folder(folder), load_descriptor(folder), tmp_path)  # as a build or a mix does
    if "mask" not in message:  # `stats` does not read masks
        with pytest.raises(DatasetError, match=pattern):
            stats_dataset(folder)
    faults = [str(fault) for fault in verify_dataset(folder, workers=1)]
    assert any(re.search(pattern, fault) for fault in faults), faults


@pytest.mark.parametrize("box", [[1.0, 2.0, 3.0], [0.0, 0.0, math.nan, 5.0]])
def test_a_box_is_four_numbers_for_every_reader_of_boxes(
    box: list[float], write: Write, edit_descriptor: Edit, tmp_path: Path
) -> None:
    folder = rewrite(write(tmp_path / "d", {SHARD: grid_pictures(0, 4)}), edit_descriptor, put(box, "box_xywh"))
    descriptor = load_descriptor(folder)
    first = descriptor.shards[0]
    rules = row_rules(descriptor)(first)

    with pytest.raises(DatasetError, match="found a box_xywh of other values, expected four finite numbers"):
        read_checked(open_folder(folder), first, rules, ["box_xywh"])
    assert any("a box_xywh of other values" in str(fault) for fault in verify_dataset(folder, workers=1))


def test_ids_of_two_manifests_are_refused(write: Write, edit_descriptor: Edit, tmp_path: Path) -> None:
    shards = {SHARD: grid_pictures(0, 2), "train-00001": grid_pictures(2, 2)}
    for name, change in (("ref_id", put(200, "ref_id")), ("sent_id", put(2000, "sentences", 0, "sent_id"))):
        folder = rewrite(write(tmp_path / name, shards), edit_descriptor, change)
        write_descriptor(folder, load_descriptor(folder))
        with pytest.raises(DatasetError, match=rf"found {name} 2000? more than once, expected each once"):
            ManifestIndex.open(folder, ["train"])


def test_a_manifest_that_was_cut_is_refused_by_stats(dataset: Path, tmp_path: Path, write: Write) -> None:
    folder = write(tmp_path / "d", {SHARD: grid_pictures(0, 4)})
    path = folder / f"{SHARD}.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2), path)

    with pytest.raises(DatasetError, match=r"train-00000.parquet: found \d+ bytes, expected"):
        stats_dataset(folder)


def claim(jpeg: bytes, height: int, width: int) -> bytes:
    """Return the file with another size in its header."""
    start = jpeg.find(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def test_a_picture_whose_header_says_another_size_is_never_decoded(write: Write, tmp_path: Path) -> None:
    bomb = claim(draw_jpeg(5, (8, 8)), 65_000, 65_000)
    picture = Picture(5, (8, 8), (Ref(1, (0, 0, 2, 2), ("x",)),), bomb)
    folder = write(tmp_path / "d", {SHARD: [picture]})
    index = ManifestIndex.open(folder, ["train"])
    message = r"its header says 65000 x 65000 pixels \(height x width\), expected 8 x 8"

    loader = RefDataset(index).loader(
        geometry=GEOMETRY, batch_size=1, num_tokens=5, seed=0, sampling="sentence", num_workers=0
    )
    for read in (
        lambda: index.decode_image(0),
        lambda: Jpegs.read(index, [0], GEOMETRY).decode(torch.device("cpu")),
        lambda: RefDataset(index)[0],
        lambda: next(iter(loader)),
        lambda: next(iter(stream(tar_urls(folder, ["train"]), geometry=GEOMETRY, num_tokens=5))),
    ):
        with pytest.raises(DatasetError, match=message):
            read()
    faults = [str(fault) for fault in verify_dataset(folder, workers=1)]
    assert any("found 65000 x 65000 pixels, expected 8 x 8 pixels" in fault for fault in faults)


def test_the_size_of_a_jpeg_is_found_as_libjpeg_finds_it() -> None:
    jpeg = draw_jpeg(1, (12, 34))
    comment = b"\xff\xfe\x00\x09" + b"\xff\xc0\x00\x11\x08\x00\x01"  # bytes of a comment that look like a size

    assert jpeg_size(jpeg) == (12, 34)
    assert jpeg_size(jpeg[:2] + comment + b"junk\xff\xff" + jpeg[3:]) == (12, 34)
    for data in (b"", b"\xff\xd8", b"GIF89a", jpeg[:20], jpeg[:2] + jpeg, jpeg[:2] + b"\xff\xda\x00\x08" + jpeg[2:]):
        with pytest.raises(ImageError):
            jpeg_size(data)


@pytest.mark.parametrize(("key", "value"), [("mask_rule", "x"), ("mix", 1e308)])
def test_a_descriptor_whose_values_no_reader_can_use_is_refused(
    key: str, value: Any, tmp_path: Path, dataset: Path, edit_descriptor: Edit
) -> None:
    def change(content: dict[str, Any]) -> None:
        if key == "mix":
            content["mix"][0]["weight"] = value
        else:
            content[key] = value

    folder = write_overlay(tmp_path / "d", dataset, mix=("toy/refseg",))
    edit_descriptor(folder, change)
    with pytest.raises(DatasetError, match=rf"refseg.json: cannot be read \({key}"):
        ManifestIndex.open(folder, ["train"])


def streamed(**fields: Any) -> str:
    """Return a sample's JSON in which the only sentence has other fields."""
    sentence = {"sent_id": 1, "exists": True, "token_ids": [49406, 49407], **fields}
    ref = {"ref_id": 1, "mask": {"size": [8, 8], "counts": [64]}, "sentences": [sentence]}
    return json.dumps({"image_id": 1, "height": 8, "width": 8, "refs": [ref]})


@pytest.mark.parametrize("text", [
    "[" * 100_000, "[]", "{", "{}", "\ud800", '{"height": 8, "width": -1, "refs": []}',
    streamed(sent_id="x"), streamed(exists=None), streamed(exists="no"), streamed(token_ids=[]),
])  # fmt: skip
def test_a_streamed_sample_that_is_not_ours_is_named(text: str, write: Write, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.jpg", draw_jpeg(1, (8, 8))), ("0.json", text.encode(errors="surrogatepass"))):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))

    with pytest.raises(DatasetError, match=r"a.tar: sample 0: found"):
        next(iter(stream([str(tmp_path / "a.tar")], geometry=GEOMETRY, num_tokens=5)))


@pytest.mark.parametrize(("path", "host"), [
    ("http://198.51.100.1/x", "http://198.51.100.1"),
    ("s3://bucket/x", "s3://bucket"),
    ("simplecache::http://198.51.100.1/x", "simplecache::http://198.51.100.1/x"),
])  # fmt: skip
def test_a_pool_on_another_host_is_asked_for_nothing_unless_the_user_allows_it(
    path: str, host: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_overlay(tmp_path / "over", dataset, pool_path=path)
    asked: list[str] = []

    def open_nothing(address: str) -> Any:
        asked.append(address)
        raise StorageError(errno.ENOENT, "no such host", address)

    monkeypatch.setattr("refseg.storage.remote.open_file_system", open_nothing)

    with pytest.raises(DatasetError, match=f"set REFSEG_ALLOW_HOSTS={host}"):
        ManifestIndex.open(folder, ["train"])
    assert any("on another host than the dataset" in str(fault) for fault in verify_dataset(folder, workers=1))
    assert asked == []
    monkeypatch.setenv("REFSEG_ALLOW_HOSTS", f"s3://other {host}")
    with pytest.raises(StorageError, match="no such host"):
        ManifestIndex.open(folder, ["train"])
    assert asked


def test_hosts_are_scheme_and_authority() -> None:
    assert host_of("/data/x") == host_of("file:///data/x") == host_of("local:///data/x") == "file://"
    assert host_of("s3://bucket/a/b") == "s3://bucket"
    assert host_of("http://good@evil/x") != host_of("http://good/x")


def test_a_dataset_at_a_url_names_no_path_of_this_machine(dataset: Path, tmp_path: Path) -> None:
    import fsspec

    folder = write_overlay(tmp_path / "over", dataset, pool_path=str(dataset))
    fsspec.filesystem("memory").put(f"{folder}/", "memory://hostile/over/", recursive=True)

    with pytest.raises(DatasetError, match="REFSEG_ALLOW_HOSTS=file://"):
        ManifestIndex.open("memory://hostile/over", ["train"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=2)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON, is_sealed=st.booleans())
def test_any_value_anywhere_in_a_descriptor_is_read_or_refused(
    data: st.DataObject, value: Any, is_sealed: bool, tmp_path_factory: pytest.TempPathFactory, dataset: Path,
    edit_descriptor: Edit,
) -> None:  # fmt: skip
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        write_overlay(folder, dataset, pool_path=str(dataset))
        (folder / "as-built.json").write_bytes((folder / "refseg.json").read_bytes())
    text = (folder / "as-built.json").read_text()
    content = json.loads(text)
    place = content
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    (folder / "refseg.json").write_text(json.dumps(content))
    if is_sealed:
        try:
            edit_descriptor(folder, lambda _: None)
        except (TypeError, KeyError, ValueError, OverflowError):
            return  # an object of this shape has no hash

    try:
        found = load_descriptor(folder)
        ManifestIndex.open(folder, found.splits)
    except RefsegError:
        return
    assert is_sealed or found.to_json() == text
