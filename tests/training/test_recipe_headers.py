"""A recipe's header has command, hardware, score and source, and every printed command names its start weights."""

import re
import shlex
from pathlib import Path

import pytest

from refseg.config import load_recipe, recipe_names
from refseg.errors import RecipeError
from refseg.training.setup import refuse_random_start

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "refseg" / "configs"
PRINTED = sorted(
    [
        *CONFIGS.glob("*.toml"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        ROOT / "README.md",
        ROOT / "scripts" / "train.sbatch",
        ROOT / "refseg" / "train.py",
    ]
)
"""Files with commands that train."""


@pytest.mark.parametrize("name", recipe_names())
def test_a_header_names_command_hardware_score_and_source(name: str) -> None:
    lines = (CONFIGS / f"{name}.toml").read_text().splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    said = {found[1]: found[2] for line in header if (found := re.fullmatch(r"# (\w+): +(\S.*)", line))}

    assert {"Command", "Hardware", "Score", "Source"} <= said.keys()
    words = shlex.split(said["Command"])
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("refseg/train.py") + 1 :][:3] == [name, "--out", f"runs/{name}"]
    if "--config_file" in words:
        assert (CONFIGS.parents[1] / words[words.index("--config_file") + 1]).is_file()
    if "--num_processes" in words:
        processes = int(words[words.index("--num_processes") + 1])
        assert load_recipe(name).train.global_batch % processes == 0


def printed_commands() -> list[tuple[str, str, list[str]]]:
    """Return file, recipe and overrides of every printed command with the name of a shipped recipe."""
    found = []
    for path in PRINTED:
        text = re.sub(r"\\+\n[# ]*", "", path.read_text(encoding="utf-8"))  # one line where a command is continued
        for name, rest in re.findall(r"(?:train\.py|train\.sbatch) ([\w-]+)([^\n`]*)", text):
            if name in recipe_names():
                words = [*shlex.split(rest), "--end"]
                starts = [place for place, word in enumerate(words) if word == "--set"]
                overrides = []
                for start in starts:
                    end = next(place for place in range(start + 1, len(words)) if words[place].startswith("--"))
                    overrides += words[start + 1 : end]
                found.append((path.name, name, overrides))
    return found


def test_every_printed_command_names_the_weights_that_its_recipe_starts_from() -> None:
    commands = printed_commands()

    assert {"README.md", "train.sbatch", "train.py", "reading.md", "training.md"} <= {path for path, *_ in commands}
    for path, name, overrides in commands:
        recipe = load_recipe(name, overrides)
        if not recipe.train.init_from:
            try:
                refuse_random_start(recipe)
            except RecipeError as error:
                pytest.fail(f"{path}: train.py {name} {overrides}: {error}")


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ([], "model.image_weights and model.text_weights"),
        (["model.image_weights=a"], "model.text_weights"),
        (["model.text_weights=a"], "model.image_weights"),
        (["model.name=lts", "model.text_encoder=bigru"], "model.image_weights"),
    ],
)
def test_random_weights_that_nobody_asked_for_are_refused(overrides: list[str], missing: str) -> None:
    given = load_recipe("cris-refcoco-r101", overrides)
    with pytest.raises(RecipeError) as refused:
        refuse_random_start(given)

    assert str(refused.value).startswith(f"{missing}: not set, so the run would start from random weights")
    assert "--set model.random_start=true" in str(refused.value)
    refuse_random_start(load_recipe("cris-refcoco-r101", [*overrides, "model.random_start=true"]))
