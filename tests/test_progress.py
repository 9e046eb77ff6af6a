"""Progress of long tasks: lines in a log, a bar on a terminal, nothing where another process reports."""

import logging
import sys
from collections.abc import Callable

import pytest

from refseg import progress
from refseg.progress import report_progress


def at(*seconds: float) -> Callable[[], float]:
    """A clock that shows these times, one after the other."""
    return iter(seconds).__next__


def test_a_long_task_logs_a_line_every_ten_seconds_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "refseg.progress")
    # 100 images lie between the reports of 2 s and 12 s, 40 more until 22.5 s: 140 in 20.5 s leave 9 minutes for 3,760.
    with report_progress("evaluate val", "images", clock=at(0, 2, 9, 12, 13, 22.5)) as report:
        for done in (100, 150, 200, 210, 240):
            report(done, 4000)

    assert caplog.messages == [
        "evaluate val: 200 of 4,000 images, 0:06:20 left",
        "evaluate val: 240 of 4,000 images, 0:09:11 left",
    ]


def test_a_short_task_logs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "refseg.progress")
    with report_progress("evaluate val", "images", clock=at(0, 5, 9.9)) as report:
        report(1, 2)
        report(2, 2)

    assert caplog.messages == []


def test_a_terminal_shows_a_bar_and_other_processes_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with report_progress("evaluate val", "images", shown=False) as report:
        report(1, 3)
    assert capsys.readouterr().err == ""
    with report_progress("evaluate val", "images") as report:
        report(1, 3)

    assert "evaluate val" in capsys.readouterr().err
    assert caplog.messages == []
