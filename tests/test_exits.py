"""How a program ends: an exit code, and an error as one line or one JSON object."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg.errors import DatasetError, UsageError
from refseg.exits import exit_code_of, print_next


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UsageError("no such split"), {"kind": "UsageError", "message": "no such split", "exit_code": 2}),
        (KeyboardInterrupt(), {"kind": "KeyboardInterrupt", "message": "interrupted", "exit_code": 130}),
        (OSError(28, "No space left on device", "out"), {"kind": "OSError", "exit_code": 1, "message":
            "out: No space left on device; check the path, its permissions and the free disk space"}),
    ],
)  # fmt: skip
def test_an_error_is_one_json_object_on_standard_output_where_json_is_wanted(
    error: BaseException, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    code = exit_code_of(_raising(error), as_json=True)

    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": expected}
    assert (code, printed.err) == (expected["exit_code"], "")


def test_the_next_command_is_quoted_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    print_next("refseg", "report", Path("my runs"))

    assert capsys.readouterr().err == "Next: refseg report 'my runs'\n"


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
