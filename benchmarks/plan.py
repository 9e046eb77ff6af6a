"""Measures reading, checking and planning of annotations of any size: seconds and memory of one process.

    python benchmarks/plan.py [--images 19994] [--toy] [--shared FOLDER]

It writes annotations in REFER's layout and an empty file for each image, and runs `refseg build-shards --stage plan` on
them. The proportions are those of RefCOCO: 19,994 images have 50,000 refs and 142,210 sentences. `--toy` repeats the
annotations of 200 toy scenes instead of real ones, which need a third of the bytes, for millions of images.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from corpus import DATASET, IMAGES, find_material, name_images, write_annotations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images")
    parser.add_argument("--toy", action="store_true", help="repeat the annotations of toy scenes")
    parser.add_argument("--shared", type=Path, help="folder of real data")
    parser.add_argument("--work", type=Path, help="folder for the annotations and the plan")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        return run(args, Path(folder))


def run(args: argparse.Namespace, work: Path) -> int:
    material = find_material(args.shared, toy=args.toy)
    start = time.perf_counter()
    name_images(work / "corpus", args.images)
    num_refs, num_sentences = write_annotations(material, work / "corpus", args.images)
    files = sorted((work / "corpus" / "toy").iterdir())
    print(
        f"{args.images:,} images, {num_refs:,} refs, {num_sentences:,} sentences, "
        f"{sum(path.stat().st_size for path in files) / 1e6:,.0f} MB of JSON: {material.name}, repeated; "
        f"written in {time.perf_counter() - start:.1f} s"
    )
    command = [sys.executable, "-m", "refseg", "build-shards", DATASET, "--stage", "plan"]
    command += ["--annotations", str(work / "corpus"), "--out", str(work / "out"), "--workers", "1"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    print(
        f"planned: {wall:.1f} s, CPU {usage.ru_utime + usage.ru_stime:.1f} s, "
        f"peak memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB (aim at RefCOCO's size: 60 s, 1.5 GB)"
    )
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
