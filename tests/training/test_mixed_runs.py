"""Training on a mix: its weights affect the steps, and its leaks are recorded in all files of the run."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.build import BuildOptions, build_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.toy import draw_toy
from refseg.cli import main
from refseg.config import load_recipe
from refseg.errors import RecipeError
from refseg.training import trainer
from refseg.training.checkpoint import load_checkpoint

SWAPPED = {"train": "val", "val": "train"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 scenes as `toy/refseg`, and as `refcoco/unc` with train and val swapped, so that each has the other's val."""
    folder = tmp_path_factory.mktemp("mixed")
    draw_toy(folder / "source", num_images=16, seed=0, image_size=(96, 96))
    refs = pickle.loads((folder / "source" / "toy" / "refs(refseg).p").read_bytes())
    other = folder / "source" / "refcoco"
    other.mkdir()
    swapped = [{**ref, "split": SWAPPED.get(ref["split"], ref["split"])} for ref in refs]
    (other / "refs(unc).p").write_bytes(pickle.dumps(swapped, protocol=2))
    (other / "instances.json").write_bytes((folder / "source" / "toy" / "instances.json").read_bytes())
    for dataset in ("toy/refseg", "refcoco/unc"):
        out = folder / "shards" / dataset.replace("/", "-")
        options = {"annotations": folder / "source", "out": out, "workers": 1, "accept_counts": dataset != "toy/refseg"}
        build_dataset(BuildOptions(dataset=dataset, **options))
    return folder / "shards"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: torch.get_num_threads())


@pytest.mark.slow
def test_a_run_on_a_mix_with_leaks_says_so_wherever_it_is_looked_at(
    shards: Path, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = (shards / "toy-refseg", shards / "refcoco-unc")
    mixed = mix_datasets(MixOptions(members=members, out=shards / "leaky", weights=(0.5, 2.0), allow_leak=True))
    toy, coco = mixed.descriptor.mix
    settings = [
        *overrides, f"data.root={shards / 'leaky'}", f"data.val_root={shards / 'toy-refseg'}", "train.epochs=1",
        "train.max_steps=2", "train.val_every_epochs=1", "data.remainder=drop",
    ]  # fmt: skip
    out = tmp_path / "run"

    result = trainer.train(load_recipe("toy-quick", settings), out)

    assert result.step == 2
    leaks = {
        "toy/refseg": {"refcoco/unc val": toy.leaked_images},
        "refcoco/unc": {"toy/refseg val": coco.leaked_images},
    }
    assert min(toy.leaked_images, coco.leaked_images) > 0
    state = load_checkpoint(out).state
    facts = json.loads((out / "environment.json").read_text())
    assert (state.lineage.dataset, state.lineage.leaks_allowed, state.lineage.leaks) == ("mix/leaky", True, leaks)
    assert (facts["dataset"], facts["leaks_allowed"], facts["leaks"]) == ("mix/leaky", True, leaks)

    # Scored where the recipe validates, since the mix has no other split than train.
    assert main(["evaluate", str(out)]) == 2
    refusal = capsys.readouterr().err
    assert f"{coco.leaked_images} of its" in refusal
    assert "were trained on" in refusal
    assert main(["evaluate", str(out), "--allow-leak"]) == 0
    warning = f"images of toy/refseg val trained on: {coco.leaked_images} by way of refcoco/unc"
    assert warning in capsys.readouterr().out
    scores = json.loads((out / "evaluation" / "scores-toy.refseg-val.json").read_text())
    assert (scores["dataset"], scores["leaks_allowed"], scores["leaks"]) == ("toy/refseg", True, leaks)
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert f"LEAKS ALLOWED: {coco.leaked_images} of " in page
    assert f"mix/leaky was mixed with training images that are in evaluation splits of its members; {warning}" in page

    # The best checkpoint refers to one validation set, whose folder may change.
    shutil.copytree(shards / "toy-refseg", tmp_path / "moved")
    moved = [*settings, f"data.val_root={tmp_path / 'moved'}"]
    assert trainer.train(load_recipe("toy-quick", moved), out).step == 2
    elsewhere = [*settings, f"data.val_root={shards / 'refcoco-unc'}"]
    with pytest.raises(RecipeError, match=r"holds a run validated on the dataset with digest .* choose another --out"):
        trainer.train(load_recipe("toy-quick", elsewhere), out)


@pytest.mark.slow
def test_an_epoch_of_a_mix_has_the_steps_of_its_weights(shards: Path, overrides: list[str], tmp_path: Path) -> None:
    mixed = mix_datasets(MixOptions(members=(shards / "toy-refseg",), out=shards / "twice", weights=(2.0,))).descriptor
    settings = [
        *overrides, f"data.root={shards / 'twice'}", "train.epochs=1", "train.val_every_epochs=0",
        "data.remainder=drop", "data.sampling=images", "train.global_batch=2", "train.max_steps=99",
    ]  # fmt: skip
    num_images = sum(entry.num_images for entry in mixed.shards)

    result = trainer.train(load_recipe("toy-quick", settings), tmp_path / "run")

    assert result.step == 2 * num_images // 2
    state = load_checkpoint(tmp_path / "run").state
    assert (state.lineage.leaks_allowed, state.lineage.leaks) == (False, {})
