"""`refseg quickstart` runs every step for real, on a few scenes."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from refseg.apps.quickstart_steps import SECONDS, seconds_left
from refseg.cli import main
from tests.warm_python import python


def quickstart(out: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command, and all commands that it starts, by the warm Python."""
    command = [python(), "-m", "refseg", "quickstart", "--out", str(out), "--images", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a first run, and what it printed to stdout and stderr."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    done = quickstart(out)
    return out, done.stdout, done.stderr


@pytest.mark.slow
def test_quickstart_goes_from_drawing_to_a_report_and_may_be_run_again(ran: tuple[Path, str, str]) -> None:
    out, printed, told = ran
    second = quickstart(out)

    plan, _, steps = printed.partition("1/7 draw")
    assert [line.split()[1] for line in plan.splitlines() if re.match(r"  \d ", line)] == list(SECONDS)
    assert "  $ refseg evaluate " in steps
    for text in ("oIoU, unseen scenes", "oIoU, sentences shuffled within each image", "report.html"):
        assert text in steps.split("Done in")[1]
    assert told.endswith(f"Next: refseg demo --checkpoint {out}/run\n")
    assert (out / "run/report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert (out / "browse/index.html").is_file()
    assert list((out / "predictions").glob("*.png"))
    trained = (out / "logs/4-train-1.log").read_text()
    assert "$ accelerate launch" in trained
    assert "is complete" in trained  # what is done is not done again
    assert "oIoU, unseen scenes" in second.stdout


@pytest.mark.slow
def test_the_pages_of_quickstart_are_filtered_sorted_and_opened(open_page: Any, ran: tuple[Path, str, str]) -> None:
    out, _, _ = ran

    page = open_page(out / "browse/index.html")
    page.wait_for_selector(".card")
    everything = page.inner_text("#status")
    page.get_by_label("Sentence", exact=True).fill("circle")
    page.wait_for_function("text => document.querySelector('#status').textContent !== text", arg=everything)
    page.get_by_label("Order").select_option(label="largest target first")
    page.wait_for_function("() => location.hash.includes('order=')")
    page.locator(".card .open").first.click()
    assert "circle" in page.get_by_role("dialog").inner_text()

    page = open_page(out / "run/report.html")
    page.get_by_label("Order").select_option(label="smallest target first")
    page.get_by_role("searchbox", name="Sentence").fill("circle")
    sentence = page.locator("figure.example:not([hidden]) q").first.inner_text()
    assert "circle" in sentence
    page.locator("figure.example:not([hidden]) .open").first.click()
    assert page.get_by_role("dialog").locator("q").inner_text() == sentence


def test_the_time_left_follows_the_pace_of_the_machine_and_of_the_running_step() -> None:
    estimates = [10.0, 20.0, 100.0, 30.0]

    assert seconds_left(estimates, [], 0.0) == 160
    assert seconds_left(estimates, [20.0], 4.0) == 36 + 260  # a machine that takes twice as long
    assert seconds_left(estimates, [20.0, 70.0], 5.0) == 295 + 90
    # A quarter in 90 s: 360 s in all, and 450 s for what is estimated at 130.
    assert seconds_left(estimates, [20.0, 70.0], 90.0, 0.25) == pytest.approx(270 + 30 * 450 / 130)
    assert seconds_left(estimates, [20.0, 70.0], 1000.0) == 90  # later than expected: the step may end at any time
    assert seconds_left(estimates, [0.0, 0.0], 0.0) == 50 + 15  # done before: nothing is known of the pace


@pytest.mark.slow
def test_a_step_that_fails_ends_the_quickstart_with_its_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", python())
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("not a toy set")

    assert main(["quickstart", "--out", str(tmp_path), "--images", "80"]) == 1

    error = capfd.readouterr().err
    assert "quickstart: a command ended with exit code 2: refseg: error: " in error
    assert f"its output is in {tmp_path / 'logs/1-draw-1.log'}" in error
    assert (tmp_path / "toy" / "mine.txt").read_text() == "not a toy set"
