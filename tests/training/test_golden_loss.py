"""A small training gives the golden losses and scores on any machine, to a tolerance that a numeric change exceeds."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "update_golden", Path(__file__).parents[2] / "scripts" / "update_golden.py"
)
assert _spec is not None
assert _spec.loader is not None
update_golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(update_golden)

WANTED = "if the change is wanted: python scripts/update_golden.py, and show before and after in the commit"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(update_golden.TOY_GOLDEN.read_text(encoding="utf-8"))
    return facts


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Facts of a run of this code on this machine."""
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
    ran: dict[str, Any] = update_golden.toy_facts(tmp_path)
    return ran


def test_a_small_training_has_the_golden_losses_and_scores(golden: dict[str, Any], facts: dict[str, Any]) -> None:
    about = f"found with {facts['made_with']}, golden with {golden['made_with']}; {WANTED}"
    # A newer setting has no golden value. If a default has changed, this assertion names it before the losses differ.
    for section, settings in golden["recipe"].items():
        assert {key: facts["recipe"][section][key] for key in settings} == settings, WANTED
    assert facts["dataset_digest"] == golden["dataset_digest"], f"other drawn data, so another order: {about}"
    assert facts["step_seeds"] == golden["step_seeds"], WANTED

    assert golden["tolerances"] == update_golden.TOLERANCES, WANTED
    early, later, scores = (golden["tolerances"][name] for name in ("early_loss", "loss", "scores"))
    num_early = early["steps"]
    assert len(golden["loss"]) == 30
    assert facts["loss"][:num_early] == pytest.approx(golden["loss"][:num_early], rel=early["relative"]), about
    assert facts["loss"] == pytest.approx(golden["loss"], rel=later["relative"]), about
    assert facts["scores"] == pytest.approx(golden["scores"], abs=scores["absolute"]), about
