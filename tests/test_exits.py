"""How a program ends: one line and an exit code."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from refseg.errors import DatasetError, UsageError
from refseg.exits import exit_code_of


def _raising(error: BaseException) -> Callable[[], int]:
    def program() -> int:
        raise error

    return program


def test_an_error_is_reported_by_one_process_unless_it_is_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(_raising(UsageError("no such split"))) == 2
    assert exit_code_of(_raising(DatasetError("damaged"))) == 1
    assert capsys.readouterr().err == "refseg: error: no such split\nrefseg: error: damaged\n"
    monkeypatch.setenv("RANK", "3")
    assert exit_code_of(_raising(UsageError("no such split"))) == 2
    assert exit_code_of(_raising(DatasetError("damaged"))) == 1
    assert capsys.readouterr().err == "refseg: error: rank 3: damaged\n"


def test_an_interrupt_says_what_is_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(_raising(KeyboardInterrupt()), interrupted="stopped; run it again") == 130
    assert capsys.readouterr().err == "refseg: stopped; run it again\n"


PROGRAM = """
import sys
from refseg.exits import exit_code_of
def program():
    {body}
    return 0
sys.exit(exit_code_of(program))
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("[print('x' * 9999, flush=True) for _ in range(99)]", 0),  # as `| head` ends it
        ("raise BrokenPipeError(32, 'Broken pipe')", 1),  # another pipe: standard output is read
    ],
)
def test_only_a_reader_that_is_gone_ends_a_program_without_an_error(body: str, code: int) -> None:
    reading, writing = os.pipe()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    if code == 0:
        os.close(reading)
    _, said = program.communicate()
    if code:
        os.close(reading)

    assert program.returncode == code
    assert ("BrokenPipeError" in said) == bool(code)
