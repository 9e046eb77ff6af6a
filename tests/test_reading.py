"""One specification of reading, for loaders, plans and recipes alike."""

from dataclasses import fields, replace

import pytest

from refseg.config import load_recipe
from refseg.data.transforms import Geometry
from refseg.errors import UsageError
from refseg.reading import Reading, ReadingOptions

SHARED = tuple(field.name for field in fields(ReadingOptions))


def test_a_recipe_gives_every_option_of_reading_and_the_run_the_rest() -> None:
    data = load_recipe("toy", ["data.input_size=[64, 96]", "data.geometry=stretch", "data.num_tokens=9"]).data

    reading = Reading.of(data, global_batch=8, seed=3, image_mean=(0.5, 0.5, 0.5), num_workers=0)

    assert {name: getattr(reading, name) for name in SHARED} == {
        **{name: getattr(data, name) for name in SHARED},
        "num_workers": 0,
    }
    assert (reading.global_batch, reading.seed, reading.shuffle, reading.trim_tokens) == (8, 3, True, False)
    assert Geometry.of(reading) == Geometry(kind="stretch", size=(64, 96), mean=(0.5, 0.5, 0.5))
    assert reading.image_bytes == 3 * 64 * 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "ref", "expressions_per_image": 2}, "samples have one expression; expected sampling 'images'"),
        ({"decode": "device", "cache_gigabytes": 0.5}, "not cached; decode on the CPU, or set cache_gigabytes to 0"),
        ({"cache_gigabytes": float("nan")}, "cache_gigabytes is nan; expected a number, at least 0"),
        ({"seed": -1}, "seed is -1; expected a whole number, at least 0"),
        ({"input_size": (32, 0)}, "a side of the input is 0; expected a whole number, at least 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused_wherever_the_specification_is_made(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Reading(global_batch=4, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        replace(Reading(global_batch=4), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "ref"),
        ({"sampling": "sentence", "shuffle": False}, "sentence in order"),
        ({"sampling": "images", "expressions_per_image": "all"}, "images all"),
    ],
)
def test_the_order_is_named_by_what_it_depends_on(options: dict[str, object], name: str) -> None:
    assert Reading(global_batch=4, **options).order_name == name  # type: ignore[arg-type]
