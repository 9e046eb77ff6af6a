"""From an empty folder to a trained model on real annotations and images, as docs/get-refcoco.md shows it."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from refseg.cli import main
from tests.range_server import serving

PAGE = (Path(__file__).parents[1] / "docs/get-refcoco.md").read_text(encoding="utf-8")


def test_the_page_shows_what_list_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for more in ([], ["refcoco/unc", "--out", str(tmp_path / "data")]):
        assert main(["download", *more, "--list"]) == 0
        shown = "".join(f"    {line}\n" if line else "\n" for line in capsys.readouterr().out.splitlines())
        assert shown.strip() in PAGE


@pytest.mark.slow
def test_one_command_each_leads_from_nothing_to_a_trained_model(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared_data / "refer-mini"
    images = sorted((source / "images/mscoco/images/train2014").iterdir())
    archives = {"train2014.zip": {f"train2014/{path.name}": path for path in images}}
    needed = set()
    for folder, refs in {"refcoco": "refs(unc)", "refcoco+": "refs(unc)", "refcocog": "refs(umd)"}.items():
        files = sorted((source / folder).iterdir())
        archives[f"{folder}.zip"] = {f"{folder}/{path.name}": path for path in files}
        needed |= {ref["image_id"] for ref in json.loads((source / folder / f"{refs}.json").read_text())}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
    monkeypatch.setattr("refseg.train.exit_at_sigterm", lambda: None)
    with serving() as server:
        lines = ['[images.train2014]\narchive = "train2014.zip"']
        for dataset, name in (
            ("refcoco/unc", "refcoco"),
            ("refcocoplus/unc", "refcoco+"),
            ("refcocog/umd", "refcocog"),
        ):
            lines += [f'[datasets."{dataset}"]\nannotations = ["{name}.zip"]\nimages = ["train2014"]']
        for name, members in archives.items():
            with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, path in members.items():
                    archive.write(path, member)
            server.files[name] = data = Path(name).read_bytes()
            lines += [f'[files."{name}"]\nbytes = {len(data)}\nsha256 = "{hashlib.sha256(data).hexdigest()}"']
            lines += [f'mirrors = ["{server.url}/{name}"]']
        Path("catalogue.toml").write_text("\n".join(lines))

        datasets = ["refcoco/unc", "refcoco+/unc", "refcocog/umd"]
        assert main(["download", *datasets, "--out", "data", "--catalogue", "catalogue.toml"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"data: fetched refcoco.zip, refcoco+.zip, refcocog.zip, {len(needed)} images, ")
    assert 5 < len(list(Path("data/train2014").iterdir())) == len(needed) < len(images)
    build, *_ = re.findall(r"^  refseg (build-shards .*)$", said, re.MULTILINE)
    assert main([*build.split(), "--accept-counts", "--workers", "1"]) == 0  # of 17 refs, none of them for training
    assert main(["verify", "shards/refcoco-unc"]) == 0
    settings = [
        "data.root=shards/refcoco-unc", "data.train_split=val", "data.val_split=testA", "data.input_size=64",
        "model.dim=32", "model.num_decoder_layers=1", "model.ffn_dim=64", "train.global_batch=2", "train.max_steps=4",
        "train.warmup_steps=0", "train.val_every_epochs=4", "train.log_every_steps=1",
    ]  # fmt: skip
    assert main(["train", "toy-quick", "--out", "run", "--set", *settings]) == 0
    assert "testA: oIoU" in capsys.readouterr().err
