"""Compares the tokenizer with open_clip's: equal ids, expressions per second, ratio.

Usage: python benchmarks/tokenizer.py SENTENCES...

SENTENCES are JSON files with a list of objects that have "sents", or text files with one expression per line.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import open_clip

from refseg import tokenizer


def main(paths: list[str]) -> None:
    sentences = [sentence for path in paths for sentence in read(Path(path))]
    reference = open_clip.SimpleTokenizer()
    for sentence in sentences:
        assert list(tokenizer.encode(sentence)[1:-1]) == reference.encode(sentence), sentence

    rates: dict[str, list[float]] = {"open_clip": [], "refseg": []}
    for _ in range(3):  # interleaved, so that other load on the machine affects both
        rates["open_clip"].append(rate(reference.encode, sentences))
        rates["refseg"].append(rate(tokenizer.encode, sentences))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(sentences):,} expressions, equal ids, one core, median of 3 rounds")
    for name, value in medians.items():
        print(f"  {name:10} {value:>10,.0f} expressions/s   {value / medians['open_clip']:.1f}x")


def read(path: Path) -> list[str]:
    if path.suffix == ".json":
        return [item["sents"] for item in json.loads(path.read_text(encoding="utf-8"))]
    return path.read_text(encoding="utf-8").splitlines()


def rate(encode: Callable[[str], object], sentences: list[str]) -> float:
    start = time.perf_counter()
    for sentence in sentences:
        encode(sentence)
    return len(sentences) / (time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
