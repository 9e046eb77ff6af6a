"""Options made from a dataclass or function: what is described there once is what the command line knows."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from refseg.cli.options import add_options, given


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order of pictures.

    Attributes:
        folder: Folder of the pictures.
        kind: JPEG or another kind, of which
            100 % is read.
        splits: Splits to read; by default all.
        num_images: Pictures to take.
        input_size: Height and width.
        shuffle: Draw the order.
        strict: Refuse what is damaged.

    Raises:
        UsageError: Never.
    """

    folder: Path | str
    kind: Literal["jpg", "png"] = "jpg"
    splits: tuple[str, ...] | None = None
    num_images: int = 4
    input_size: tuple[int, int] = (480, 640)
    shuffle: bool = True
    strict: bool = False


def _parser(**details: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_options(parser, Order, positional=("folder",), num_images={"flag": "--images"}, **details)
    return parser


def test_what_is_given_is_read_by_its_type_and_the_rest_is_left_to_the_defaults() -> None:
    words = [
        "shards",
        "--kind",
        "png",
        "--splits",
        "val",
        "testA",
        "--images",
        "7",
        "--input-size",
        "320",
        "--no-shuffle",
        "--strict",
    ]

    everything = given(_parser().parse_args(words), Order)

    assert everything == {
        "folder": "shards", "kind": "png", "splits": ("val", "testA"), "num_images": 7, "input_size": (320, 320),
        "shuffle": False, "strict": True,
    }  # fmt: skip
    assert given(_parser().parse_args(["shards"]), Order) == {"folder": "shards"}
    assert Order(**given(_parser().parse_args(["shards"]), Order)) == Order(folder="shards")


def test_help_is_the_description_and_the_default() -> None:
    text = " ".join(_parser().format_help().split())

    assert "--kind {jpg,png} JPEG or another kind, of which 100 % is read (default: jpg)" in text
    assert "--splits NAME [NAME ...] splits to read; by default all --images N pictures to take (default: 4)" in text
    assert "--input-size HxW height and width (default: 480x640) --no-shuffle draw the order --strict" in text
    assert "Never" not in text


def test_a_subclass_has_the_descriptions_of_its_bases() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Larger(Order):
        """A larger order.

        Attributes:
            rate: Pictures per second.
        """

        rate: float = 2.0

    parser = argparse.ArgumentParser()
    add_options(parser, Larger, rate={"default": 3.0})

    text = " ".join(parser.format_help().split())
    assert "--folder DIR folder of the pictures" in text
    assert "--rate X pictures per second (default: 3.0)" in text
    assert given(parser.parse_args(["--folder", "a"]), Larger) == {"folder": "a", "rate": 3.0}


def test_a_parameter_without_a_default_is_required() -> None:
    with pytest.raises(SystemExit, match="2"):
        _parser().parse_args([])


def test_a_prefix_keeps_two_targets_apart() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Order, prefix="first_")
    add_options(parser, Order, prefix="second_", leave_out=("folder",))

    args = parser.parse_args(["--first-folder", "a", "--second-num-images", "3"])

    assert given(args, Order, prefix="first_") == {"folder": "a"}
    assert given(args, Order, prefix="second_") == {"num_images": 3}


def test_a_function_is_a_target_too() -> None:
    def draw(out: Path, *, seed: int = 0) -> None:
        """Draw.

        Args:
            out: Folder to make.
            seed: Seed of what is drawn.
        """

    parser = argparse.ArgumentParser()
    add_options(parser, draw, out={"metavar": "DIR"})

    assert given(parser.parse_args(["--out", "toy", "--seed", "5"]), draw) == {"out": Path("toy"), "seed": 5}
    assert "--out DIR" in parser.format_help()


def test_a_type_that_no_text_stands_for_is_refused_when_the_command_is_written() -> None:
    def take(settings: dict[str, int]) -> None:
        """Take."""

    with pytest.raises(TypeError, match="no option is made of a parameter of type dict"):
        add_options(argparse.ArgumentParser(), take)
