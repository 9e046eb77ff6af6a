"""Only `refseg/dataset/` reads manifests, because it checks their hash and rows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN_PARQUET = {
    "pipelines/export/parquet_hf.py": "writes another project's format",
    "pipelines/rejects.py": "writes rejects.parquet",
    "pipelines/sources/parquet_rows.py": "reads Parquet files of the Hugging Face Hub",
    "pipelines/sources/table.py": "reads a user's own table",
    "refseg/evaluation/partial.py": "reads and writes the rows of an unfinished evaluation",
    "refseg/evaluation/predictions.py": "reads a user's predictions",
    "refseg/evaluation/results.py": "reads and writes rows of scores",
}
"""Files outside of `refseg/dataset/` that may use Arrow's Parquet, and what for."""


def arrow_readers(tree: ast.AST) -> Iterator[str]:
    """Return the modules of pyarrow that read Parquet, in any form of import."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pa":
            names = [f"pyarrow.{node.attr}"]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        yield from (name for name in names if name in ("pyarrow.parquet", "pyarrow.dataset"))


def sources() -> list[str]:
    found = [path for package in ("refseg", "pipelines", "manifests") for path in (ROOT / package).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def test_parquet_is_read_by_the_dataset_package_and_by_those_that_have_files_of_their_own() -> None:
    users = {name for name in sources() if any(arrow_readers(ast.parse((ROOT / name).read_text("utf-8"))))}

    assert "refseg/dataset/manifest_reader.py" in users
    assert {name for name in users if not name.startswith("refseg/dataset/")} == set(OWN_PARQUET)


@pytest.mark.parametrize(
    "code",
    ["import pyarrow.parquet as pq", "from pyarrow import parquet", "from pyarrow.parquet import read_table",
     "import pyarrow as pa\npa.parquet.read_table('x')", "import_module('pyarrow.parquet')", "import pyarrow.dataset"],
)  # fmt: skip
def test_no_way_to_import_it_is_missed(code: str) -> None:
    assert list(arrow_readers(ast.parse(code)))
