"""The guide to writing a reader does what it says."""

import re
from pathlib import Path
from typing import Any

from pipelines.sources import FAMILIES, READERS, ReadOptions
from refseg.dataset.schema import find_dataset

from .example import meanings

DOCS = Path(__file__).parents[3] / "docs"


def test_the_reader_and_the_example_that_it_shows_work(tmp_path: Path) -> None:
    reader_code, example_code = re.findall(r"```python\n(.*?)```", (DOCS / "write-a-reader.md").read_text(), re.DOTALL)
    shown: dict[str, Any] = {}
    exec(reader_code, shown)
    exec(example_code, shown)
    example = shown["EXAMPLE"]
    example.write(tmp_path)

    found = meanings(shown["READER"].read(find_dataset("custom/mine"), tmp_path, ReadOptions()))

    assert found.keys() == example.means.keys()
    for meaning, mask in example.means.items():
        assert (found[meaning] == mask).all()


def test_every_reader_has_a_line_in_the_guide_to_ones_own_data() -> None:
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "your-own-data.md").read_text(), re.MULTILINE)

    assert {name for name, reader in READERS.items() if reader not in FAMILIES} <= set(listed)
