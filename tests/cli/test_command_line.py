"""The command line as a whole: quick, torch-free until a command needs it, helpful everywhere."""

import json
import logging
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from refseg.cli import COMMANDS, GROUPS, main
from refseg.errors import DatasetError


def test_help_is_quick_and_does_not_import_torch() -> None:
    program = "import sys; from refseg.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert done.stdout.endswith("False\n")
    # A promise to users, not a benchmark: 0.05 s. Of the processor's time, as other processes take theirs.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert all(name in done.stdout for name in COMMANDS)


def test_help_lists_every_command_under_the_heading_of_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    lines = capsys.readouterr().out.splitlines()
    shown: dict[str, list[str]] = {}
    for line in lines[lines.index("commands:") + 1 :]:
        if heading := re.fullmatch(r"  (\w[\w ]*):", line):
            shown[heading[1]] = []
        elif command := re.match(r"    ([\w-]+)(  |$)", line):
            shown[list(shown)[-1]].append(command[1])
    assert shown == {heading: list(commands) for heading, commands in GROUPS.items()}


@pytest.mark.parametrize(
    ("arguments", "kind", "found"),
    [
        (["stats", "no-such-folder", "--json"], "MissingDatasetError", "no-such-folder"),
        (["stats", "--json"], "UsageError", "the following arguments are required: DIR"),
        (["evaluate", "--json", "--split", "val", "--protocl", "cris", "run"], "UsageError", "--protocl"),
        (["statz", "--json"], "UsageError", "did you mean stats?"),
    ],
)
def test_errors_are_json_where_the_result_would_have_been(
    arguments: list[str], kind: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert (error["kind"], error["exit_code"], printed.err) == (kind, 2, "")
    assert found in error["message"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])

    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"  refseg {command}" in printed.split("example:\n")[1]


def test_no_command_prints_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2

    assert "commands:" in capsys.readouterr().out


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["biuld-shards"])

    assert stop.value.code == 2
    assert "build-shards" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == "refseg 0.1.0\n"


def test_a_path_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(_args: object) -> int:
        (tmp_path / "file" / "folder").mkdir()
        return 0

    (tmp_path / "file").touch()
    monkeypatch.setattr("refseg.cli.stats.run", write)

    assert main(["stats", "anywhere"]) == 1
    assert capsys.readouterr().err == (
        f"refseg: error: {tmp_path}/file/folder: Not a directory; check the path, its permissions "
        "and the free disk space\n"
    )


def test_control_characters_in_names_are_shown_and_not_sent_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "cat\x1b[2J\r\x9b\u202e"

    def run(_args: object) -> int:
        sys.stdout.write(f"category {name}\n")
        logging.getLogger("refseg.data").warning("file %s", name)
        raise DatasetError(f"{name}: damaged")

    monkeypatch.setattr("refseg.cli.stats.run", run)
    assert main(["stats", "anywhere"]) == 1

    said = capsys.readouterr()
    shown = r"cat\x1b[2J\r\x9b\u202e"
    assert said.out == f"category {shown}\n"
    assert said.err.endswith(f"file {shown}\nrefseg: error: {shown}: damaged\n")
