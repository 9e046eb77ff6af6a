"""Rewrites the golden files, the only thing that does: run it after a wanted change and read the diff.

python scripts/update_golden.py
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests import sample_folder
from pipelines.build import build_dataset
from pipelines.options import BuildOptions

SAMPLE_GOLDEN = sample_folder().parent / "sample_golden.json"


def sample_facts(work: Path) -> dict[str, Any]:
    """Build the bundled sample in an empty folder and say what must not change without being noticed.

    `rows_sha256` covers every value of the manifest; the rest tells a reader of the diff what it was.
    """
    out = work / "sample-ccby"
    options = BuildOptions(dataset="sample/ccby", annotations=sample_folder(), out=out, workers=1)
    descriptor = build_dataset(options).descriptor
    rows: list[dict[str, Any]] = []
    for shard in descriptor.shards:
        tar = (out / f"{shard.name}.tar").read_bytes()
        for row in pq.read_table(out / f"{shard.name}.parquet").to_pylist():
            jpeg = tar[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
            rows.append(
                {
                    "ref_id": row["ref_id"],
                    "image_id": row["image_id"],
                    "image_sha256": hashlib.sha256(jpeg).hexdigest(),
                    "no_target": row["no_target"],
                    "mask_area": sum(row["mask"]["counts"][1::2]),
                    "token_ids": {str(s["sent_id"]): s["token_ids"] for s in row["sentences"]},
                }
            )
    return {
        "dataset": descriptor.dataset,
        "tokenizer": descriptor.tokenizer,
        "rows_sha256": {shard.name: shard.rows_sha256 for shard in descriptor.shards},
        "rows": sorted(rows, key=lambda row: row["ref_id"]),
    }


def dump_golden(facts: dict[str, Any]) -> str:
    """Text of a golden file: one row a line, so that a diff shows which row changed."""
    head = {name: value for name, value in facts.items() if name != "rows"}
    rows = ",\n".join(f"  {json.dumps(row)}" for row in facts["rows"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def main() -> None:
    """Rewrite `manifests/sample_golden.json`."""
    with tempfile.TemporaryDirectory() as work:
        SAMPLE_GOLDEN.write_text(dump_golden(sample_facts(Path(work))), encoding="utf-8")
    print(SAMPLE_GOLDEN)


if __name__ == "__main__":
    main()
