"""The torch-free half works in an environment without torch: another project uses the shards beside its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "accelerate"):
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
"""
USE = """
import sys
from pathlib import Path

from manifests import sample_folder
from refseg.cli import main

if __name__ == "__main__":
    out = Path(sys.argv[1])
    toy, sample, source = str(out / "toy"), str(out / "sample"), str(out / "source")
    for command in (
        ["build-shards", "sample/ccby", "--annotations", str(sample_folder()), "--out", sample],
        ["toy", "--out", source, "--images", "10", "--size", "96"],
        ["build-shards", "toy/refseg", "--annotations", source, "--out", toy, "--images-per-shard", "2",
         "--workers", "2"],
        ["verify", sample],
        ["stats", sample],
        ["export", sample, "--to", "coco", "--out", str(out / "coco")],
        ["mix", toy, sample, "--out", str(out / "mix")],
        ["verify", str(out / "mix")],
    ):
        assert main(command) == 0, command

    import refseg
    from refseg.compat.refer import REFER

    refer = REFER(str(out), dataset="sample", splitBy="ccby")
    assert len(refer.getRefIds()) == 5
    assert refer.getMask(refer.loadRefs(refer.getRefIds()[0])[0])["mask"].any()
    try:
        refseg.load_dataset(sample, "test")
    except ImportError as error:
        assert "torch is hidden" in str(error)
    else:
        raise AssertionError("torch is not hidden")
"""


@pytest.mark.slow
def test_datasets_are_built_checked_mixed_exported_and_read_where_there_is_no_torch(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)  # workers of a build start with it, too
    script = tmp_path / "use.py"
    script.write_text(USE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
