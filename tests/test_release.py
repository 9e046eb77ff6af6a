"""What a release is made of says the same: versions, the files of the wheel, the workflow and the Dockerfile."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml", reason="needs PyYAML")


def _read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_version_stands_in_the_package_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "refseg/__init__.py"
    assert "version" not in _read_yaml("CITATION.cff")


def test_a_release_is_uploaded_only_after_the_wheel_and_the_image_have_run() -> None:
    jobs = _read_yaml(".github/workflows/release.yml")["jobs"]

    assert jobs["publish"]["needs"] == ["build", "image"]
    assert "scripts/check_release" in [step.get("run") for step in jobs["build"]["steps"]]


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_every_script_that_a_workflow_runs_exists(workflow: Path) -> None:
    named = re.findall(r"scripts/\w+", workflow.read_text(encoding="utf-8"))

    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_the_image_is_built_from_what_the_wheel_is_built_from() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", dockerfile) for name in line.split()[:-1]}
    admitted = set(re.findall(r"(?m)^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8")))
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]

    assert copied == admitted
    assert set(build["targets"]["wheel"]["packages"]) < copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_base_of_the_image_is_an_argument() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    assert re.search(r"(?m)^ARG BASE=python:", dockerfile)
    assert set(re.findall(r"(?m)^FROM (\S+)", dockerfile)) == {"${BASE}", "python"}
