"""A recipe's header says how to run it, on what, and what to expect from where."""

import re
import shlex
from pathlib import Path

import pytest

from refseg.config import load_recipe, recipe_names

CONFIGS = Path(__file__).parents[2] / "refseg" / "configs"


@pytest.mark.parametrize("name", recipe_names())
def test_a_header_names_command_hardware_score_and_source(name: str) -> None:
    lines = (CONFIGS / f"{name}.toml").read_text().splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    said = {found[1]: found[2] for line in header if (found := re.fullmatch(r"# (\w+): +(\S.*)", line))}

    assert {"Command", "Hardware", "Score", "Source"} <= said.keys()
    words = shlex.split(said["Command"])
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("refseg/train.py") + 1 :] == [name, "--out", f"runs/{name}"]
    if "--config_file" in words:
        assert (CONFIGS.parents[1] / words[words.index("--config_file") + 1]).is_file()
    if "--num_processes" in words:
        processes = int(words[words.index("--num_processes") + 1])
        assert load_recipe(name).train.global_batch % processes == 0
