"""Every command with odd paths and names: an exit code, one message, and nothing written where it should not be.

`COMMANDS` is the table: one row for each command. `{...}` stands for a path, `<...>` for a name; each in
turn is replaced by something odd while all others are right. A command without a row fails the first test.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import manifests
from refseg.cli import COMMANDS as ALL_COMMANDS
from refseg.cli import _parser, main

pytestmark = pytest.mark.slow

COMMANDS = {
    # A second row of a command has a space behind its name.
    "quickstart": "--out {new}",
    "build-shards": "<toy/refseg> --annotations {annotations} --images {images} --out {new_or_url} --workers 1 "
    "--splits <val>",
    "build-shards ": "toy/refseg --annotations {annotations} --images-from {pool} --out {new_or_url} --workers 1",
    "verify": "{dataset} --fast",
    "stats": "{dataset}",
    "browse": "{dataset} --out {page} --split <val> --images 1 --predictions {results}",
    "plan": "{dataset} --split <val> --global-batch 2",
    "doctor": "{dataset} --recipe {recipe} --split <val> --seconds 0.01",
    "unpack-images": "{packed} --out {new}",
    "mix": "{dataset} --out {new_or_url} --name m --allow-leak",
    "export": "{dataset} --to <coco> --no-images --splits <val> --out {new}",
    "models": "--model <lts> --encoder <tiny> --input-size 32",
    "export-model": "{run} --out {new} --format <torch>",
    "convert-weights": "<cris> {weights} --out {new_file}",
    "evaluate": "{run} --data {dataset} --split <val> --protocol <cris> --out {results_out}",
    "score": "{predictions} --data {dataset} --split <val> --protocol <original> --out {results_out}",
    "report": "{results} --data {dataset} --out {page_file}",
    "publish": "{run} --out {new}",
    "predict": "{image} --text the-red-circle --checkpoint {run} --out {results_out}",
    "demo": "--checkpoint {run} --data {dataset} --port 0",
    "download": "<refcoco/unc> --out {new} --catalogue {catalogue} --list",
    "toy": "--out {new} --images 10 --size 96",
    "train": "{recipe} --out {run_out} --set data.root={trained_on} model.image_weights={start}",
}
"""Arguments that are right but for what is being tried."""

OUTPUTS = ("new", "new_or_url", "new_file", "page", "page_file", "results_out", "run_out")
LATER = ("trained_on", "start")
"""Looked at by the run itself, which does not begin here."""

Make = Callable[[Path, Path], str]
"""From what is right and an empty folder to what is odd, as it stands on the command line."""


def _capitals(good: Path, folder: Path) -> str:
    return str(good).swapcase() if good.exists() else str(folder / "OUT")


def _file(good: Path, folder: Path) -> str:
    (folder / "a file.txt").write_text("precious")
    return str(folder / "a file.txt")


def _other_folder(good: Path, folder: Path) -> str:
    (folder / "mine.html").mkdir()
    (folder / "mine.html/photo.mask.png").write_text("precious")
    return str(folder / "mine.html")


def _spoilt(spoil: Callable[[bytes], bytes]) -> Make:
    """Something right with its main file spoilt."""

    def make(good: Path, folder: Path) -> str:
        if not good.exists():
            (folder / good.name).write_bytes(spoil(b"precious"))
            return str(folder / good.name)
        copy = folder / good.name
        (shutil.copytree if good.is_dir() else shutil.copy)(good, copy)
        main_names = ("refseg.json", "state.json", "scores-*.json", "instances.json", "*.jpg")
        found = [path for name in main_names for path in sorted(copy.rglob(name))] if copy.is_dir() else [copy]
        for path in found[:1] if found and found[0].name == "refseg.json" else found:
            path.chmod(0o644)
            path.write_bytes(spoil(path.read_bytes()))
        return str(copy)

    return make


# Text that is neither a path nor a URL is the matter of `tests/test_addresses.py`: all arguments take the same way.
ODD: dict[str, Make] = {
    "URL of an unknown kind": lambda good, folder: f"nosuch://bucket/{good.name}",
    "URL of nothing": lambda good, folder: f"memory://nothing/{good.name}",
    "home": lambda good, folder: f"~/{good.name}",
    "file": _file,
    "other folder": _other_folder,
    "capitals": _capitals,
    "newline": lambda good, folder: "gone\nand\x1b[2Jgone",
    "empty file": _spoilt(lambda data: b""),
    "byte order mark": _spoilt(lambda data: b"\xef\xbb\xbf" + data),
    "truncated file": _spoilt(lambda data: data[: len(data) // 2]),
}


@pytest.fixture(scope="session")
def good(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name of a `{...}`: what is right there."""
    folder = tmp_path_factory.mktemp("good")
    shards = toy_run.parent / "shards"
    assert main(["evaluate", str(toy_run), "--save-predictions", "--out", str(folder / "results")]) == 0
    (rows,) = (folder / "results").glob("rows-*.parquet")
    shutil.copy(rows, folder / "predictions.parquet")
    Image.new("RGB", (60, 40), "red").save(folder / "photo.jpg")
    torch.save({"state_dict": {"module.backbone.visual.conv1.weight": torch.ones(2, 3)}}, folder / "cris.pth")
    picture = {"image": {"bytes": (folder / "photo.jpg").read_bytes(), "path": "a.jpg"}}
    pq.write_table(pa.Table.from_pylist([picture]), folder / "packed.parquet")
    shutil.copy(Path(manifests.__file__).with_name("downloads.toml"), folder)
    (folder / "recipe.toml").write_text(f'extends = "toy"\n[data]\nroot = "{shards}"\n')
    return {
        "run": toy_run, "dataset": shards, "pool": shards, "annotations": toy_run.parent / "source",
        "images": toy_run.parent / "source/images", "recipe": folder / "recipe.toml", "image": folder / "photo.jpg",
        "packed": folder / "packed.parquet", "catalogue": folder / "downloads.toml",
        "predictions": folder / "predictions.parquet", "results": folder / "results", "weights": folder / "cris.pth",
        # Never right: a run would train.
        "trained_on": folder / "no dataset", "start": folder / "no weights",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which the command is called; the home folder is another one."""
    import fsspec

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "work", "odd"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for heavy in (
        "refseg.apps.quickstart._start", "uvicorn.Server.run", "refseg.training.trainer.train",
        "torch.export.export", "refseg.evaluation.report.build_report", "refseg.apps.doctor.examine",
    ):  # fmt: skip
        monkeypatch.setattr(heavy, _never)
    monkeypatch.setattr("refseg.training.launch.die_with_launcher", lambda: None)
    monkeypatch.setattr("refseg.train.exit_at_sigterm", lambda: None)
    monkeypatch.setattr("refseg.storage_requests._FIRST_PAUSE_SECONDS", 0.0)
    yield tmp_path / "work"
    fsspec.filesystem("memory").store.clear()


class _Started(Exception):
    """What takes long would begin now: all arguments were taken."""


def _never(*args: object, **options: object) -> None:
    raise _Started


def _call(command: str, arguments: list[str]) -> int:
    try:
        return main([command.strip(), *arguments])
    except SystemExit as error:
        return int(error.code or 0)
    except _Started:
        return 0


def _arguments(command: str, good: dict[str, Path], odd: dict[str, str]) -> list[str]:
    def path(match: re.Match[str]) -> str:
        name = match[1]
        new = Path("new.html" if name == "page_file" else "new")
        return odd.get(match[0], str(good.get(name, new)))

    words = [re.sub(r"\{(\w+)\}", path, word) for word in COMMANDS[command].split()]
    return [re.sub(r"^<(.*)>$", lambda match: odd.get(match[0], match[1]), word) for word in words]


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, by its path below a folder; of folders their names alone."""
    found: dict[str, tuple[int, int]] = {}
    for entry in os.scandir(folder):
        if entry.is_dir():
            within = {f"{entry.name}/{name}": facts for name, facts in _contents(Path(entry.path)).items()}
            found |= {f"{entry.name}/": (0, 0), **within}
        else:
            status = entry.stat(follow_symlinks=False)
            found[entry.name] = (status.st_size, status.st_mtime_ns)
    return found


CASES = [
    (command, name, kind)
    for command, arguments in COMMANDS.items()
    for name in dict.fromkeys(re.findall(r"\{(\w+)\}", arguments))
    for kind in ODD
]


def test_every_command_and_every_path_it_takes_has_a_row() -> None:
    assert {row.strip() for row in COMMANDS} == set(ALL_COMMANDS)
    for command in ALL_COMMANDS:
        parser = _parser([command])
        subparsers = next(action for action in parser._actions if action.choices and command in action.choices)
        row = " ".join(words for name, words in COMMANDS.items() if name.strip() == command).split()
        for action in subparsers.choices[command]._actions:  # type: ignore[index, call-overload, union-attr]
            takes_a_path = getattr(action.type, "__name__", "") in ("path_argument", "address_argument")
            if takes_a_path and action.option_strings and action.dest not in NOT_TRIED:
                assert action.option_strings[0] in row, f"{command} {action.option_strings[0]}"


NOT_TRIED = ("annotations",)  # of export: compared with the dataset's own sources, in tests of the export


@pytest.mark.parametrize(("command", "name", "kind"), CASES, ids=["-".join(case).replace(" ", "_") for case in CASES])
def test_an_odd_path_is_a_message_and_nothing_is_written_elsewhere(
    command: str,
    name: str,
    kind: str,
    good: dict[str, Path],
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = ODD[kind](good.get(name, Path("new")), workplace.parent / "odd")
    if name == "page_file" and odd.startswith(("~", "nosuch", "memory", "s3")):
        odd += ".html"
    folders = {path.parent for path in good.values() if path.parent.is_dir()}
    inputs = [folder for folder in folders if not folders & set(folder.parents)]
    before = [_contents(folder) for folder in (*inputs, workplace.parent / "odd")]

    code = _call(command, _arguments(command, good, {f"{{{name}}}": odd}))

    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    assert "\x1b[2J" not in said.err + said.out
    made = {path.name for path in workplace.iterdir()}
    assert not {made_name for made_name in made if made_name.startswith(("~", "s3:", "nosuch", "memory"))}
    after = [_contents(folder) for folder in (*inputs, workplace.parent / "odd")]
    for earlier, later in zip(before, after, strict=True):
        assert {path: earlier[path] for path in earlier} == {path: later.get(path) for path in earlier}
    assert after[:-1] == before[:-1]
    if code == 0:
        assert name in OUTPUTS + LATER or kind in (
            "home",
            "byte order mark",
            "capitals",
            "truncated file",
            "empty file",
        )
        return
    assert code in (1, 2), said.err
    assert made == set()
    assert after[-1] == before[-1]
    assert len(re.findall(r"^refseg.*: error: |^accelerate.*: error: ", said.err, re.M)) == (
        0 if command == "verify" and code == 1 else 1
    ), said.err
    named = re.sub(r"\.html$", "", odd.replace("\x1b", r"\x1b").rstrip("/"))
    expanded = named.replace("~", str(workplace.parent / "home"), 1) if named.startswith("~/") else named
    within = [path.name for path in Path(odd).rglob("*.jpg")] if kind.endswith(("file", "mark")) else []
    assert any(text in said.err + said.out for text in (named[:40], expanded[:40], Path(named).name[:40], *within))


NAMES = [(command, name) for command, arguments in COMMANDS.items() for name in re.findall(r"<([^>]+)>", arguments)]


@pytest.mark.parametrize(("command", "name"), NAMES, ids=["-".join(case) for case in NAMES])
def test_a_name_in_capitals_or_misspelt_is_recognised(
    command: str, name: str, good: dict[str, Path], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for found in (name.upper(), f"{name}x"):
        assert _call(command, _arguments(command, good, {f"<{name}>": found})) == 2
        assert f"did you mean {name}?" in capsys.readouterr().err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("found", ["Evaluate", "evalute"])
def test_a_command_that_is_misspelt_is_recognised(found: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([found, "run"])
    assert "did you mean evaluate?" in capsys.readouterr().err
