"""Interrupted evaluations resume, and end with the rows of an uninterrupted evaluation."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import TrainingError
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.partial import CountedParts, weights_digest
from refseg.evaluation.protocols import LISA, ORIGINAL
from tests.warm_python import python

Write = Callable[..., Path]
ROOT = Path(__file__).parents[2]

PICTURE: dict[str, Any] = {
    "size": (32, 64),
    "stripes": {"red": (0, 16), "blue": (32, 48)},
    "refs": [((0, 16), ["the red", "leftmost red"]), ((32, 64), ["the blue"])],
}


def evaluate(folder: Path, model: Any, parts: CountedParts | None = None, **options: Any) -> pa.Table:
    settings = {"num_tokens": 12, "images_per_batch": 2, "save_predictions": True, **options}
    return evaluate_model(
        model,
        ManifestIndex.open(folder, ["val"]),
        accelerator=Accelerator(cpu=True),
        geometry=Geometry(kind="letterbox", size=settings.pop("size", (32, 64))),
        parts=parts,
        **settings,
    )


def interrupted(folder: Path, model: Any, parts: CountedParts, *, after_batches: int, **options: Any) -> None:
    """An evaluation that fails when it encodes one batch too many."""
    encode, calls = model.encode_image, []

    def encode_some(images: torch.Tensor) -> Any:
        calls.append(len(images))
        if len(calls) > after_batches:
            raise KeyboardInterrupt
        return encode(images)

    model.encode_image = encode_some
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, model, parts, **options)
    model.encode_image = encode
    model.num_encoded_images = 0


def each_batch(folder: Path, subject: str = "a model") -> CountedParts:
    """Part files that are written after each batch."""
    return CountedParts(folder / ".parts", {"model": subject}, seconds_apart=0.0)


def test_an_interrupted_pass_encodes_the_rest_alone_and_ends_with_the_rows_of_an_unbroken_one(
    write_stripes: Write, colour_model: Any, tmp_path: Path
) -> None:
    folder = write_stripes(*[PICTURE] * 9)
    whole = evaluate(folder, colour_model, protocols=[ORIGINAL, LISA])
    interrupted(folder, colour_model, each_batch(tmp_path), after_batches=2, protocols=[ORIGINAL, LISA])
    interrupted(folder, colour_model, each_batch(tmp_path), after_batches=1, protocols=[ORIGINAL, LISA])

    rows = evaluate(folder, colour_model, each_batch(tmp_path), protocols=[ORIGINAL, LISA])

    assert rows.equals(whole, check_metadata=True)
    assert colour_model.num_encoded_images == 4  # of 9 the last 3, and one to fill the batch
    colour_model.num_encoded_images = 0
    assert evaluate(folder, colour_model, each_batch(tmp_path), protocols=[ORIGINAL, LISA]).equals(whole)
    assert colour_model.num_encoded_images == 0  # all was counted: only the results had not been written


def test_the_control_goes_on_too_and_passes_over_what_it_leaves_out(
    write_stripes: Write, colour_model: Any, tmp_path: Path
) -> None:
    alone = {**PICTURE, "refs": [((0, 16), ["the red"])]}
    folder = write_stripes(alone, PICTURE, alone, PICTURE, PICTURE)
    options: dict[str, Any] = {"sentence_order": "shuffled", "save_predictions": False, "images_per_batch": 1}
    whole = evaluate(folder, colour_model, **options)
    interrupted(folder, colour_model, each_batch(tmp_path), after_batches=1, **options)

    assert evaluate(folder, colour_model, each_batch(tmp_path), **options).equals(whole, check_metadata=True)
    assert colour_model.num_encoded_images == 2


@pytest.mark.parametrize(
    "other",
    [
        {"subject": "another model"},
        {"num_tokens": 11},
        {"images_per_batch": 3},
        {"size": (64, 64)},
        {"protocols": [LISA]},
        {"sentence_order": "shuffled"},
        {"save_predictions": False},
        {"picture": {**PICTURE, "refs": PICTURE["refs"][::-1]}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_was_counted_of_anything_else_is_not_used(
    write_stripes: Write, colour_model: Any, tmp_path: Path, other: dict[str, Any]
) -> None:
    folder = write_stripes(*[PICTURE] * 6)
    interrupted(folder, colour_model, each_batch(tmp_path), after_batches=2)

    options = dict(other)
    parts = each_batch(tmp_path, options.pop("subject", "a model"))
    if "picture" in options:
        folder = write_stripes(*[options.pop("picture")] * 6)
    rows = evaluate(folder, colour_model, parts, **options)

    assert colour_model.num_encoded_images == 6
    assert rows.equals(evaluate(folder, colour_model, **options), check_metadata=True)


def test_a_torn_part_is_counted_again(write_stripes: Write, colour_model: Any, tmp_path: Path) -> None:
    folder = write_stripes(*[PICTURE] * 8)
    whole = evaluate(folder, colour_model)
    interrupted(folder, colour_model, each_batch(tmp_path), after_batches=3)
    cut, flipped, _ = sorted(tmp_path.rglob("*.parquet"))
    cut.write_bytes(cut.read_bytes()[:-20])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)

    assert evaluate(folder, colour_model, each_batch(tmp_path)).equals(whole)
    assert colour_model.num_encoded_images == 6


def test_two_evaluations_at_once_do_not_count_double(write_stripes: Write, colour_model: Any, tmp_path: Path) -> None:
    folder = write_stripes(*[PICTURE] * 6)
    interrupted(folder, colour_model, each_batch(tmp_path / "first"), after_batches=2)
    evaluate(folder, colour_model, CountedParts(tmp_path / "second", {"model": "a model"}))
    (all_at_once,) = (tmp_path / "second").rglob("*.parquet")
    one_batch = next((tmp_path / "first").rglob("*.parquet"))
    all_at_once.rename(one_batch.with_name(all_at_once.name))
    colour_model.num_encoded_images = 0

    assert evaluate(folder, colour_model, each_batch(tmp_path / "first")).equals(evaluate(folder, colour_model))
    assert colour_model.num_encoded_images == 6  # by the second of them


def test_parts_are_written_seconds_apart_and_removed_together(
    write_stripes: Write, colour_model: Any, tmp_path: Path
) -> None:
    folder = write_stripes(*[PICTURE] * 8)
    parts = CountedParts(tmp_path / ".parts", {})
    evaluate(folder, colour_model, parts)

    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    parts.remove()
    parts.remove()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_ends_the_pass(write_stripes: Write, colour_model: Any, tmp_path: Path) -> None:
    (tmp_path / ".parts").write_text("a file where the folder should be")

    with pytest.raises(TrainingError, match=r"\.parquet: cannot be written .* run the same command again to resume"):
        evaluate(write_stripes(PICTURE), colour_model, each_batch(tmp_path))


def test_a_digest_of_weights_knows_names_values_and_types() -> None:
    model = torch.nn.Linear(2, 1)
    before = weights_digest(model)
    assert weights_digest(model) == before
    assert weights_digest(torch.nn.Sequential(model)) != before
    assert weights_digest(model.to(torch.bfloat16)) != before
    norm = torch.nn.BatchNorm1d(2)  # its counter has no dimensions
    before = weights_digest(norm)
    norm.get_buffer("num_batches_tracked").add_(1)
    assert weights_digest(norm) != before


KILLED = """
import os, signal, sys
from refseg.cli import main
from refseg.evaluation.partial import CountedParts

keep = CountedParts.keep

def keep_and_die(self, found, **options):
    keep(self, found, at_once=True)
    os.kill(os.getpid(), signal.SIGKILL)

CountedParts.keep = keep_and_die
main(["evaluate", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_one_process_is_killed_and_two_go_on(toy_run: Path, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "MASTER", "WORLD"))}
    launch = [
        "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "refseg" / "configs" / "accelerate_cpu2.yaml"),
        "-m", "refseg", "evaluate",
    ]  # fmt: skip

    def run(start: list[str], out: str) -> "subprocess.CompletedProcess[str]":
        options = ["--split", "train", "--allow-leak", "--save-predictions", "--out", str(tmp_path / out)]
        command = [python(), *start, str(toy_run), *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean, timeout=300, check=False)

    assert run(["-m", "refseg", "evaluate"], "whole").returncode == 0
    assert run(["-c", KILLED], "broken").returncode == -signal.SIGKILL
    (kept,) = (tmp_path / "broken").rglob("*.parquet")
    num_kept = pq.read_metadata(kept).num_rows
    done = run(launch, "broken")

    assert done.returncode == 0, done.stderr
    name = "rows-toy.refseg-train.parquet"
    whole, rows = pq.read_table(tmp_path / "whole" / name), pq.read_table(tmp_path / "broken" / name)
    assert rows.equals(whole, check_metadata=True)
    assert 0 < num_kept < len(rows)
    assert f"resuming: {num_kept} of {len(rows)} sentences are done" in done.stderr
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == [name, "scores-toy.refseg-train.json"]
