"""`refseg report --explain` asks the run's own checkpoint."""

import shutil
from pathlib import Path

import pytest

from refseg.cli import main


@pytest.mark.slow
def test_the_words_of_examples_are_shaded_where_asked_for(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    assert main(["evaluate", str(run), "--save-predictions"]) == 0

    assert main(["report", str(run)]) == 0
    plain = (run / "report.html").read_text()
    assert main(["report", str(run), "--explain"]) == 0
    explained = (run / "report.html").read_text()

    assert "[SOS]" not in plain
    assert explained.count('<span class="attended">') == explained.count('<figure class="example"') > 0

    shutil.rmtree(run / "checkpoints")
    capsys.readouterr()
    assert main(["report", str(run), "--explain"]) == 1
    assert "state.json" in capsys.readouterr().err
