"""A published run segments and scores like the run itself, and its card says what it is."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from refseg.apps.predict import segment
from refseg.apps.publish import model_card, publish
from refseg.cli import main
from refseg.config import make_recipe
from refseg.errors import UsageError
from refseg.lineage import Ancestor
from refseg.models.hub_folder import PublishedModel
from refseg.sealed import seal
from refseg.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def scored_run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy run with scores of val and its control."""
    run = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(toy_run, run)
    for control in ([], ["--shuffled-sentences"]):
        assert main(["evaluate", str(run), "--split", "val", *control]) == 0
    return run


@pytest.fixture(scope="module")
def folder(scored_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(scored_run, tmp_path_factory.mktemp("published") / "fcnet-toy", licence="apache-2.0").folder


def test_the_folder_segments_like_the_run(scored_run: Path, folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    texts = ["the red square", "the blue circle on the left"]

    expected, found = (segment(path, picture, texts) for path in (scored_run, folder))

    assert (found.masks == expected.masks).all()
    assert load_checkpoint(folder).dataset_digest == load_checkpoint(scored_run).dataset_digest


def test_the_folder_scores_like_the_run(
    scored_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((scored_run / "evaluation" / "scores-toy.refseg-val.json").read_text())
    shards = load_checkpoint(scored_run).recipe.data.root
    capsys.readouterr()

    assert main(["evaluate", str(folder), "--split", "val", "--out", str(tmp_path)]) == 2
    assert "fcnet-toy: names no dataset, expected --data DIR beside a published model" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--split", "val", "--data", shards, "--out", str(tmp_path), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["scores"] == expected["scores"]


def test_the_card_holds_scores_rules_and_a_recipe_that_loads(scored_run: Path, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    scores = json.loads((scored_run / "evaluation" / "scores-toy.refseg-val.json").read_text())

    facts = yaml.safe_load(head)
    assert (facts["library_name"], facts["license"]) == ("refseg", "apache-2.0")
    result = facts["model-index"][0]
    assert result["name"] == "fcnet-toy"
    assert len(result["results"]) == 1  # the control is no result
    metrics = {metric["name"]: metric["value"] for metric in result["results"][0]["metrics"]}
    assert metrics == {name: round(100 * value, 2) for name, value in scores["scores"].items()}
    assert all(f"- {rule}\n" in body for rule in scores["rules"])
    assert "### toy/refseg val, shuffled sentences: the control, no score of the model" in body
    recipe = make_recipe(tomllib.loads(body.split("```toml\n")[1].split("```")[0]), where="card")
    run = load_checkpoint(scored_run).recipe
    assert recipe == load_checkpoint(folder).recipe
    assert (recipe.train, recipe.eval, recipe.model.dim) == (run.train, run.eval, run.model.dim)
    assert str(scored_run.parent) not in card
    assert run.data.root not in card


def test_scores_of_another_checkpoint_are_left_out_aloud(
    scored_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored_run, run)
    for path in (run / "evaluation").glob("scores-*.json"):
        path.write_text(json.dumps(seal({**json.loads(path.read_text()), "step": 999})))

    published = publish(run, tmp_path / "model")

    assert published.splits == ()
    assert "the scores of toy/refseg val are of step 999, not of step" in caplog.text
    card = (published.folder / "README.md").read_text()
    assert "The run had no evaluation of this checkpoint when it was published." in card
    assert "No licence is given" in card


def test_the_command_says_what_it_wrote(scored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(scored_run), "--out", str(tmp_path / "toy")]) == 0
    out = capsys.readouterr().out
    assert (
        f"{tmp_path / 'toy'}: wrote config.json, model.safetensors, README.md from {scored_run / 'checkpoints'}" in out
    )
    assert "scores on the card: toy/refseg val\n" in out

    assert main(["publish", str(scored_run), "--out", str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == ["toy/refseg val"]

    assert main(["publish", str(scored_run), "--out", str(tmp_path / "toy")]) == 2
    assert "toy: there is something already; remove it or choose another --out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="there is something already"):
        publish(scored_run, tmp_path / "toy")


def test_names_of_others_stay_texts_in_the_card_and_its_head(folder: Path) -> None:
    evil = "a |b| <img src=x>\n---\n# c"
    published = PublishedModel.from_pretrained(folder)
    ancestor = Ancestor(path=evil, weights_sha256="", step=1, root="", split="train", dataset=evil, dataset_digest="")
    data = replace(published.recipe.data, train_split="😀")
    published = replace(
        published,
        recipe=published.recipe.model_copy(update={"data": data}),
        lineage=replace(published.lineage, dataset=evil, ancestors=(ancestor,)),
    )

    card = model_card(published, [], name=evil, licence=evil)

    _, head, body = re.split(r"(?m)^---$", card, maxsplit=2)
    facts = yaml.safe_load(head)
    assert facts["license"] == evil
    assert "a \\|b\\| &lt;img src=x> --- \\# c" in body
    assert "<img" not in body
    assert tomllib.loads(body.split("```toml\n")[1].split("```")[0])["data"]["train_split"] == "😀"
