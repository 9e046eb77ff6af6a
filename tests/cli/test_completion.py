"""`refseg --print-completion`, in the shell it is for."""

import subprocess
from pathlib import Path

import pytest

from refseg.cli import COMMANDS, SHELLS, main


def _completed(script: Path, *words: str, folder: Path) -> list[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source '{script}'\ncd '{folder}'\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        f"_shtab_refseg refseg '{words[-1]}' '{words[-2]}'\n" + 'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_choices_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "refseg.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "photo.jpg").touch()

    assert _completed(script, "refseg", "build", folder=tmp_path) == ["build-shards"]
    assert _completed(script, "refseg", "verify", "--f", folder=tmp_path) == ["--fast"]
    assert _completed(script, "refseg", "export", "--to", "co", folder=tmp_path) == ["coco"]
    assert _completed(script, "refseg", "predict", "pho", folder=tmp_path) == ["photo.jpg"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_completed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0

    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--print-completion", "fish"])

    assert "found 'fish', expected one of bash, zsh, tcsh" in capsys.readouterr().err
