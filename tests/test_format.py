"""The format's specification holds: its schema fits what is built, other projects' readers read it unmodified."""

import hashlib
import importlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import xxhash
from PIL import Image
from pycocotools.coco import COCO

from pipelines.build import build_dataset
from pipelines.export.run import ExportOptions, export_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.options import BuildOptions
from pipelines.sources.plain_pickle import load_plain_pickle
from refseg.dataset import descriptor as descriptor_module
from refseg.dataset.schema import FORMAT_VERSION, MANIFEST_SCHEMA

DOCS = Path(__file__).parents[1] / "docs"
SCHEMA = json.loads((DOCS / f"format-{FORMAT_VERSION}.schema.json").read_text(encoding="utf-8"))
SAMPLE = Path(__file__).parents[1] / "manifests" / "sample"


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})


def build(dataset: str, source: Path, out: Path, **changes: Any) -> Path:
    given = {"images_per_shard": 2, "workers": 1, "accept_counts": True, **changes}
    build_dataset(BuildOptions(dataset=dataset, annotations=source, out=out, **given))
    return out


def draw(mask: dict[str, Any]) -> np.ndarray:
    """The line of NumPy that the specification gives."""
    counts, (height, width) = mask["counts"], mask["size"]
    return np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled sample, built: a ref without a target among others."""
    return build("sample/ccby", SAMPLE, tmp_path_factory.mktemp("sample") / "built")


@pytest.fixture(scope="module")
def mini(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`refcoco/unc` of `refer-mini`, built in three shards."""
    return build("refcoco/unc", shared_data / "refer-mini", tmp_path_factory.mktemp("mini") / "built")


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> dict[int, tuple[dict[str, Any], np.ndarray, bytes]]:
    """What the sources of `mini` say: by ref id the ref, its mask and its JPEG."""
    folder = shared_data / "refer-mini"
    coco = COCO(folder / "refcoco" / "instances.json")
    found = {}
    for ref in load_plain_pickle((folder / "refcoco" / "refs(unc).p").read_bytes(), folder):
        path = folder / "images/mscoco/images/train2014" / coco.imgs[ref["image_id"]]["file_name"]
        found[ref["ref_id"]] = ref, coco.annToMask(coco.anns[ref["ann_id"]]), path.read_bytes()
    return found


def samples_of(folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Key, JPEG and JSON of all samples, by Python's own tarfile, and what the specification says of a tar."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert all((m.mode, m.uid, m.gid, m.mtime, m.type) == (0o644, 0, 0, 0, tarfile.REGTYPE) for m in members)
            for image, text in zip(members[::2], members[1::2], strict=True):
                key, dot, suffix = image.name.partition(".")
                assert (dot, suffix, text.name) == (".", "jpg", f"{key}.json")
                yield key, *(tar.extractfile(member).read() for member in (image, text))  # type: ignore[union-attr]
        assert path.read_bytes()[-1024:] == bytes(1024)


@pytest.mark.parametrize("name", ["sample", "mini"])
def test_descriptor_samples_and_rows_fit_the_schema(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((folder / "refseg.json").read_text()))
    for key, _, text in samples_of(folder):
        validator("sample").validate(json.loads(text))
        assert key == f"{json.loads(text)['image_id']:012d}"
        assert json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode() == text
    for path in folder.glob("*-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            validator("row").validate(row)
            assert all(row["mask"]["counts"][1:])  # only the first run may be empty


def test_mixes_pools_and_small_pictures_fit_the_schema(sample: Path, tmp_path: Path) -> None:
    pooled = build("sample/ccby", SAMPLE, tmp_path / "pooled", images_from=(sample,))
    small = build("sample/ccby", SAMPLE, tmp_path / "small", store="letterbox:64")
    source = tmp_path / "mine"
    source.mkdir()
    picture = next((SAMPLE / "images/train2014").glob("*.jpg"))
    row = {"image": picture.name, "sentence": "all", "split": "train", "height": 1, "width": 1, "box": [0, 0, 9, 9]}
    with Image.open(picture) as opened:
        row["width"], row["height"] = opened.size
    (source / "sentences.jsonl").write_text(json.dumps(row) + "\n")
    mine = build("custom/mine", source, tmp_path / "built", images=picture.parent)
    mix_datasets(MixOptions(members=(str(mine), str(sample)), out=tmp_path / "mix", allow_leak=True))

    for folder in (pooled, small, mine, tmp_path / "mix"):
        jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((folder / "refseg.json").read_text()))


def spoil(path: str, value: Any) -> Any:
    """A change of one field; `None` takes it away."""

    def change(content: Any) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            content = content[int(parent) if parent.isdigit() else parent]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(("path", "value"), [
    ("format_version", 1), ("format_version", FORMAT_VERSION + 1), ("format", "other"), ("digest", "abc"),
    ("mask_rule", "sum"), ("shards", []), ("shards.0.tar_sha256", "xyz"), ("shards.0.num_refs", -1),
    ("shards.0.rows_sha256", None), ("shards.0.more", 1), ("tokenizer.vocab_sha256", None), ("more", 1), ("mix", None),
])  # fmt: skip
def test_the_schema_refuses_another_descriptor(path: str, value: Any, sample: Path) -> None:
    content = json.loads((sample / "refseg.json").read_text())
    spoil(path, value)(content)

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(content)


@pytest.mark.parametrize(("path", "value"), [
    ("image_id", "7"), ("height", 0), ("refs", []), ("refs.0.sentences", []), ("refs.0.sentences.0.sent", " "),
    ("refs.0.mask.counts", [1.5]), ("refs.0.mask.size", [3]), ("refs.0.box_xywh", [1, 2, 3]), ("refs.0.more", 1),
    ("refs.0.sentences.0.token_ids", [49406, 50000]), ("refs.0.no_target", 0), ("refs.0.ann_ids", None),
])  # fmt: skip
def test_the_schema_refuses_another_sample(path: str, value: Any, sample: Path) -> None:
    content = json.loads(next(samples_of(sample))[2])
    spoil(path, value)(content)

    with pytest.raises(jsonschema.ValidationError):
        validator("sample").validate(content)


def test_the_schema_has_the_fields_of_the_code() -> None:
    for name, definition in SCHEMA["$defs"].items():
        described = getattr(descriptor_module, name[0].upper() + name[1:], None)
        if described is not None:
            own = ["format", "descriptor_sha256", "digest"] if name == "descriptor" else []
            assert list(definition["properties"]) == own + [field.name for field in fields(described)], name
        if "properties" in definition:
            assert definition["required"] == list(definition["properties"])
            assert definition["additionalProperties"] is False
    assert list(SCHEMA["$defs"]["row"]["properties"]) == MANIFEST_SCHEMA.names
    for name, column in (("rowSentence", "sentences"), ("annotation", "annotations")):
        inner = MANIFEST_SCHEMA.field(column).type.value_type
        assert list(SCHEMA["$defs"][name]["properties"]) == [field.name for field in inner]


def test_the_columns_page_names_every_column() -> None:
    page = (DOCS.parent / "manifests" / "COLUMNS.md").read_text(encoding="utf-8").split("# Columns of `rejects")[0]

    assert [name for name in MANIFEST_SCHEMA.names if f"`{name}`" not in page and f"`{name}." not in page] == []


def test_digest_and_hashes_are_as_specified(mini: Path) -> None:
    content = json.loads((mini / "refseg.json").read_text())
    facts: list[Any] = [content["format_version"], content["dataset"], []]
    rest = {name: value for name, value in content.items() if name not in ("format", "descriptor_sha256")}
    text = json.dumps(rest, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == content["descriptor_sha256"]
    for shard in content["shards"]:
        rows = pq.read_table(mini / f"{shard['name']}.parquet").to_pylist()
        for row in rows:
            assert row.pop("source_rank") >= 0
            assert (row.pop("image_kind"), row.pop("ignore")) == ("jpg", None)
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for row in rows)
        assert hashlib.sha256(b"".join(lines)).hexdigest() == shard["rows_sha256"]
        facts[2].append([shard["name"], shard["split"], shard["rows_sha256"]])
        for suffix in ("tar", "parquet"):
            data = (mini / f"{shard['name']}.{suffix}").read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (
                shard[f"{suffix}_bytes"],
                shard[f"{suffix}_sha256"],
            )
        for row in rows:
            data = (mini / row["shard"]).read_bytes()
            start = row["image_offset"] - 512
            sample = data[start : start + row["sample_bytes"]]
            assert xxhash.xxh3_64_hexdigest(sample) == row["sample_xxh3"]
            assert xxhash.xxh3_64_hexdigest(sample[512 : 512 + row["image_bytes"]]) == row["image_xxh3"]
            assert int(sample[:12]) == row["image_id"]
    assert hashlib.sha256(json.dumps(facts).encode()).hexdigest() == content["digest"]


def check(refs: list[tuple[int, list[dict[str, Any]], dict[str, Any], bytes]], truth: dict[int, Any]) -> None:
    """Compare what a reader found of each ref (id, sentences, mask, JPEG) with the sources."""
    assert sorted(ref_id for ref_id, *_ in refs) == sorted(truth)
    for ref_id, sentences, mask, jpeg in refs:
        ref, drawn, data = truth[ref_id]
        assert [(found["sent_id"], found["raw"], found["sent"]) for found in sentences] == [
            (found["sent_id"], found["raw"], found["sent"]) for found in ref["sentences"]
        ]
        assert np.array_equal(draw(mask), drawn)
        assert jpeg == data


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves its tars open
def test_webdataset_reads_the_shards(mini: Path, truth: dict[int, Any]) -> None:
    urls = sorted(map(str, mini.glob("*.tar")))
    samples = [(item["jpg"], json.loads(item["json"])) for item in wds.WebDataset(urls, shardshuffle=False)]

    check(
        [(ref["ref_id"], ref["sentences"], ref["mask"], jpeg) for jpeg, facts in samples for ref in facts["refs"]],
        truth,
    )


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Hugging Face's library, told before it is loaded to ask nobody and to keep its cache here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        library = importlib.import_module("datasets")
        library.disable_progress_bars()
        yield library


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_reads_the_tars(streaming: bool, datasets: Any, mini: Path, truth: dict[int, Any]) -> None:
    files = {split: str(mini / f"{split}-*.tar") for split in ("val", "testA")}
    loaded = datasets.load_dataset("webdataset", data_files=files, streaming=streaming)

    refs = []
    for split in files:
        for item in loaded[split].cast_column("jpg", datasets.Image(decode=False)):
            assert item["__key__"] == f"{item['json']['image_id']:012d}"
            jpeg = item["jpg"]["bytes"]
            refs += [(ref["ref_id"], ref["sentences"], ref["mask"], jpeg) for ref in item["json"]["refs"]]
    check(refs, truth)


def test_hugging_face_reads_the_manifests(datasets: Any, mini: Path, truth: dict[int, Any]) -> None:
    loaded = datasets.load_dataset("parquet", data_files={"val": str(mini / "val-*.parquet")})["val"]

    assert loaded.column_names == MANIFEST_SCHEMA.names
    for row in loaded:
        assert np.array_equal(draw(row["mask"]), truth[row["ref_id"]][1])


def test_hugging_face_reads_the_parquet_export_by_its_folder(
    datasets: Any, mini: Path, truth: dict[int, Any], tmp_path: Path
) -> None:
    export_dataset(ExportOptions(folder=mini, to="parquet-hf", out=tmp_path / "hf"))
    loaded = datasets.load_dataset(str(tmp_path / "hf"))
    image = loaded["val"][0]["image"]

    assert sorted(loaded) == ["testA", "val"]
    assert (image.height, image.width) == (loaded["val"][0]["height"], loaded["val"][0]["width"])
    refs = []
    for split in loaded.values():
        assert isinstance(split.features["image"], datasets.Image)
        for item in split.cast_column("image", datasets.Image(decode=False)):
            assert item["image"]["path"] == item["file_name"]
            refs += [(ref["ref_id"], ref["sentences"], ref["mask"], item["image"]["bytes"]) for ref in item["refs"]]
            assert all(draw(ref["mask"]).sum() == ref["area"] for ref in item["refs"])
    check(refs, truth)


def test_duckdb_asks_the_manifests(mini: Path, truth: dict[int, Any]) -> None:
    query = f"""
        SELECT split, count(*), sum(len(sentences)), list(ref_id ORDER BY ref_id)
        FROM '{mini}/*-*.parquet' GROUP BY split ORDER BY split
    """
    expected = []
    for split in ("testA", "val"):
        refs = [ref for ref, _, _ in truth.values() if ref["split"] == split]
        ids = sorted(ref["ref_id"] for ref in refs)
        expected.append((split, len(refs), sum(len(ref["sentences"]) for ref in refs), ids))

    assert duckdb.sql(query).fetchall() == expected
    words = duckdb.sql(
        f"SELECT count(*) FROM (SELECT unnest(sentences) AS s FROM '{mini}/*-*.parquet') WHERE len(s.words) > 3"
    )
    sentences = [sentence for ref, _, _ in truth.values() for sentence in ref["sentences"]]
    assert words.fetchall() == [(sum(len(sentence["tokens"]) > 3 for sentence in sentences),)]


def test_pandas_reads_the_manifests(mini: Path, truth: dict[int, Any]) -> None:
    frame = pd.concat([pd.read_parquet(path) for path in sorted(mini.glob("*-*.parquet"))])

    assert frame["area"].sum() == sum(int(drawn.sum()) for _, drawn, _ in truth.values())
    for row in frame.itertuples():
        assert np.array_equal(draw(row.mask), truth[row.ref_id][1])


def test_the_specification_speaks_of_this_version() -> None:
    page = (DOCS / "format.md").read_text(encoding="utf-8")

    assert page.startswith(f"# The folder format, version {FORMAT_VERSION}\n")
    assert f"(format-{FORMAT_VERSION}.schema.json)" in page
    assert SCHEMA["$defs"]["descriptor"]["properties"]["format_version"]["const"] == FORMAT_VERSION
