"""`refseg quickstart` runs every step for real, on a few scenes."""

import re
from pathlib import Path

import pytest

from refseg.cli import main


@pytest.mark.slow
def test_quickstart_goes_from_drawing_to_a_report_and_may_be_run_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quickstart"

    assert main(["quickstart", "--out", str(out), "--images", "80"]) == 0
    first = capfd.readouterr()
    assert main(["quickstart", "--out", str(out), "--images", "80"]) == 0
    second = capfd.readouterr()

    for text in ("oIoU, unseen scenes", "oIoU, sentences shuffled within each image", "report.html"):
        assert text in first.out.split("Done in")[1]
    assert (out / "run/report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert (out / "browse/index.html").is_file()
    assert list((out / "predictions").glob("*.png"))
    assert re.search(r"step (\d+)/\1 ", first.err)  # trained to its last step
    assert "is trained" in second.err  # what is done is not done again
    assert "oIoU, unseen scenes" in second.out


def test_a_step_that_fails_ends_the_quickstart_with_its_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("not a toy set")

    assert main(["quickstart", "--out", str(tmp_path), "--images", "80"]) == 1

    error = capfd.readouterr().err
    assert "the last command shown above ended with exit code 2" in error
    assert (tmp_path / "toy" / "mine.txt").read_text() == "not a toy set"
