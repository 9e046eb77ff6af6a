"""Python's front door: `refseg.load_dataset`, `refseg.load_model`, `refseg.evaluate`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import refseg
from refseg.apps.predict import segment
from refseg.apps.publish import publish
from refseg.cli import main
from refseg.errors import CheckpointError, ImageError, UsageError
from refseg.evaluation.results import load_results


@pytest.fixture
def shards(toy_run: Path) -> Path:
    return toy_run.parent / "shards"


def test_five_lines_lead_from_a_dataset_and_a_run_to_masks(toy_run: Path, shards: Path) -> None:
    dataset = refseg.load_dataset(shards, "val")
    model = refseg.load_model(toy_run)
    sample = dataset[0]
    found = model.segment(sample.image, sample.sentences)

    assert found.masks.shape == (len(sample.sentences), *sample.mask.shape)
    assert found.texts == sample.sentences


def test_a_run_is_scored_as_the_command_scores_it(toy_run: Path, shards: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(toy_run), "--split", "val", "--out", str(tmp_path / "command")]) == 0
    (expected,) = load_results(tmp_path / "command")

    found = refseg.evaluate(toy_run, shards, "val", protocols=["original", "cris"], out=tmp_path / "python")

    assert found.scores.by_name() == expected.scores.by_name()
    assert found.rows.num_rows == expected.rows.num_rows
    assert [scores.protocol.name for scores in found.other_scores] == ["cris"]
    (written,) = load_results(tmp_path / "python")
    assert written.rows.equals(found.rows, check_metadata=True)
    assert written.origin.to_json() == found.origin.to_json()


def test_scores_that_nobody_asked_to_keep_are_not_written(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(toy_run.rglob("*"))
    monkeypatch.chdir(tmp_path)

    assert refseg.evaluate(str(toy_run), split="val", protocols="cris").protocols[0].name == "cris"

    assert sorted(toy_run.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_scored_is_refused(toy_run: Path) -> None:
    with pytest.raises(UsageError, match=r"were trained on .* another split, or add --allow-leak"):
        refseg.evaluate(toy_run, split="train")
    with pytest.raises(UsageError, match=r"unknown protocol 'criss'; .* did you mean"):
        refseg.evaluate(toy_run, protocols="criss")


def test_a_text_alone_is_one_phrase_and_not_its_letters(toy_run: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)

    assert refseg.load_model(str(toy_run)).segment(picture, "red square").texts == ("red square",)


def test_all_kinds_of_pictures_are_the_same_picture(toy_run: Path, shards: Path, tmp_path: Path) -> None:
    tensor = refseg.load_dataset(shards, "val")[0].image
    array = tensor.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "photo.png")
    model = refseg.load_model(toy_run)
    expected = segment(toy_run, tmp_path / "photo.png", ["red circle"])

    for image in (tensor, array, array[:, :, ::1], Image.fromarray(array), tmp_path / "photo.png"):
        found = model.segment(image, "red circle")
        assert np.array_equal(found.picture, expected.picture)
        assert np.array_equal(found.masks, expected.masks)
    assert np.array_equal(model.segment(str(tmp_path / "photo.png"), "red circle").masks, expected.masks)


def test_probabilities_and_explanations_are_there_where_asked_for(toy_run: Path, shards: Path) -> None:
    image = refseg.load_dataset(shards, "val")[0].image
    model = refseg.load_model(toy_run)

    plain = model.segment(image, ["red circle", "blue square"])
    told = model.segment(image, ["red circle", "blue square"], probabilities=True, explain=True)

    assert plain.probabilities is None
    assert plain.explanations == ()
    with pytest.raises(UsageError, match=r"found no explanations, .* segment with explain=True"):
        plain.explanation_picture(0)
    assert told.probabilities is not None
    assert np.array_equal(told.probabilities > 0.5, plain.masks)  # the recipe's protocol is `original`
    assert 0 <= told.probabilities.min() <= told.probabilities.max() <= 1
    assert told.explanations[0].words == ("[SOS]", "red", "circle", "[EOS]")


def test_a_published_folder_is_a_model(toy_run: Path, shards: Path, tmp_path: Path) -> None:
    publish(toy_run, tmp_path / "published")
    image = refseg.load_dataset(shards, "val")[0].image

    ours = refseg.load_model(toy_run).segment(image, "red circle")
    published = refseg.load_model(tmp_path / "published").segment(image, "red circle")

    assert np.array_equal(ours.masks, published.masks)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (torch.zeros(1, 40, 60, dtype=torch.uint8), "Tensor of shape (1, 40, 60) and type torch.uint8"),
        (torch.zeros(3, 40, 60), "Tensor of shape (3, 40, 60) and type torch.float32"),
        (np.zeros((40, 60), np.uint8), "ndarray of shape (40, 60) and type uint8"),
        (np.zeros((40, 60, 3)), "ndarray of shape (40, 60, 3) and type float64"),
    ],
)
def test_pixels_of_another_kind_are_refused(toy_run: Path, image: object, found: str) -> None:
    with pytest.raises(ImageError, match=f"image: found {re.escape(found)}, expected a uint8 array"):
        refseg.load_model(toy_run).segment(image, "red circle")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "texts", "says"),
    [
        (b"jpeg", "a", "image: found bytes, expected a path, a picture of Pillow's"),
        ("https://host/a.jpg", "a", "found the URL https://host/a.jpg, expected a path of this machine"),
        (np.zeros((0, 60, 3), np.uint8), "a", "image: found shape (0, 60, 3), which has no pixel"),
        (np.zeros((40, 60, 3), np.uint8), {"a": 1}, "text 1: found {'a': 1}, expected a phrase"),
        (np.zeros((40, 60, 3), np.uint8), 5, "text 1: found 5, expected a phrase"),
        (np.zeros((40, 60, 3), np.uint8), ["a", None], "text 2: found None, expected a phrase"),
    ],
)
def test_what_is_no_picture_or_no_text_is_refused(
    toy_run: Path, image: Any, texts: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it checks types in tests alone
    with pytest.raises((ImageError, UsageError), match=re.escape(says)):
        refseg.load_model(toy_run).segment(image, texts)


def test_texts_may_come_one_by_one_and_a_prediction_says_what_was_found(toy_run: Path) -> None:
    found = refseg.load_model(toy_run).segment(np.zeros((40, 60, 3), np.uint8), (text for text in ("a", "b")))

    shares = [f"{text!r} {share:.1%}" for text, share in zip("ab", found.covered_shares, strict=True)]
    assert repr(found) == f"<Prediction on a picture of 40 x 60 pixels: {shares[0]}, {shares[1]}>"


def test_what_is_not_there_is_said(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it checks types in tests alone
    with pytest.raises(UsageError, match="no split was given; expected some of train, val"):
        refseg.load_dataset(shards)
    with pytest.raises(UsageError, match=r"split: found \['train', 'val'\], expected a name; several names are"):
        refseg.load_dataset(shards, ["train", "val"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="folder: found None, expected a path"):
        refseg.load_dataset(None, "val")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="device: found 'potato', which cannot be used here"):
        refseg.load_model(tmp_path, device="potato")
    with pytest.raises(CheckpointError, match="found no checkpoint, expected a run's folder"):
        refseg.load_model(tmp_path)
    with pytest.raises(AttributeError, match="module 'refseg' has no attribute 'load_modle'"):
        refseg.load_modle  # noqa: B018


def test_a_model_says_what_it_is(toy_run: Path) -> None:
    model = refseg.load_model(toy_run)

    assert repr(model) == f"<TrainedModel fcnet of toy/refseg, step {model.checkpoint.step}: {model.checkpoint.folder}>"


def test_the_import_brings_no_torch_and_names_what_there_is() -> None:
    code = "import refseg, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(*dir(refseg))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {"__version__", "load_dataset", "load_model"} <= set(names)
