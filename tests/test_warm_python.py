"""The Python by which tests start programs treats them as Python does."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.warm_python import python

TELL = "import os, sys; print(os.getcwd(), os.environ['MARK'], sys.argv); sys.exit({end})"
SLEEP = """
import os, signal, time
{before}
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("end", "code", "said"), [("", 0, ""), ("3", 3, ""), ("'no'", 1, "no\n")])
def test_a_program_has_the_callers_folder_environment_and_arguments(
    tmp_path: Path, end: str, code: int, said: str
) -> None:
    command = [python(), "-c", TELL.format(end=end), "a b", "c"]
    done = subprocess.run(command, cwd=tmp_path, env={"MARK": "here"}, capture_output=True, text=True)

    assert done.stdout == f"{tmp_path} here ['-c', 'a b', 'c']\n"
    assert (done.returncode, done.stderr) == (code, said)


def test_an_error_is_told_with_its_lines_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("import sibling\nsibling.fail()\n")
    (tmp_path / "sibling.py").write_text("def fail():\n    raise ValueError('as it should')\n")
    done = subprocess.run([python(), str(tmp_path / "wrong.py")], capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: as it should\n")
    assert 'wrong.py", line 2' in done.stderr


def start(before: str = "") -> "tuple[subprocess.Popen[str], int]":
    """A program that sleeps, and its process id."""
    run = subprocess.Popen([python(), "-c", SLEEP.format(before=before)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    return run, int(run.stdout.readline())


def has_ended(process: int) -> bool:
    """Within a minute."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_an_interrupt_without_a_handler_ends_program_and_caller() -> None:
    run, process = start()
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == -signal.SIGINT
    assert has_ended(process)
    run.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_the_caller_ends_as_the_program_does(number: signal.Signals) -> None:
    plain, process = start(f"signal.signal({number:d}, signal.SIG_DFL)")
    plain.send_signal(number)
    assert plain.wait(60) == -number
    assert has_ended(process)

    handled, process = start(f"signal.signal({number:d}, lambda *_: os._exit(9))")
    handled.send_signal(number)
    assert handled.wait(60) == 9
    assert has_ended(process)
    for run in (plain, handled):
        run.communicate()


def test_a_program_is_killed_with_its_caller_and_the_other_way_round() -> None:
    caller, process = start()
    caller.kill()
    assert has_ended(process)
    caller.communicate()

    caller, process = start()
    os.kill(process, signal.SIGKILL)
    assert caller.wait(60) == -signal.SIGKILL
    caller.communicate()


def test_a_program_that_starts_python_starts_this_one() -> None:
    ask = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-u', '-c', 'print(1)']))"
    done = subprocess.run([python(), "-c", ask], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
