"""Paths and URLs as a person writes them."""

import argparse
from pathlib import Path

import pytest

from refseg.addresses import address_argument, local_path, parse_address, path_argument, whole_address
from refseg.config import load_recipe
from refseg.errors import RecipeError, UsageError
from refseg.storage import open_folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("text", ["~/shards", Path("~/shards")])
def test_a_tilde_is_the_home_folder_wherever_an_address_is_taken(home: Path, text: str | Path) -> None:
    assert parse_address(text) == local_path(text) == path_argument(str(text)) == home / "shards"
    assert whole_address(text) == address_argument(str(text)) == open_folder(text).address == f"{home}/shards"


def test_a_tilde_in_a_setting_is_the_home_folder(home: Path) -> None:
    recipe = load_recipe("toy", ["data.root=~/shards", "train.init_from=~/run", "model.text_weights=~/clip"])
    assert (recipe.data.root, recipe.train.init_from) == (f"{home}/shards", f"{home}/run")
    assert recipe.model.text_weights == f"{home}/clip"
    with pytest.raises(
        RecipeError, match=r"data\.root: found s3:/bucket/x, expected a path or a URL; write s3://bucket"
    ):
        load_recipe("toy", ["data.root=s3:/bucket/x"])


def test_a_url_is_taken_as_it_is_where_it_can_be_read_and_refused_where_it_cannot() -> None:
    assert parse_address("s3://bucket/run") == whole_address("s3://bucket/run") == "s3://bucket/run"
    with pytest.raises(UsageError, match="found the URL s3://bucket/run, expected a path of this machine"):
        local_path("s3://bucket/run")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a path of this machine"):
        path_argument("s3://bucket/run")


@pytest.mark.parametrize("text", ["s3:/bucket/run", Path("s3://bucket/run")])
def test_a_url_that_lost_a_slash_never_names_a_local_folder(text: str | Path) -> None:
    for parse in (parse_address, local_path, whole_address, open_folder):
        with pytest.raises(UsageError, match=r"write s3://bucket/run, or \./s3:/bucket/run for a folder of that name"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty path"),
        ("~no-such-user/x", "no home folder of that user"),
        ("a\0b", "zero byte"),
        ("a/" + "x" * 300, "name of 300 bytes, x{40}..., expected at most 255"),
    ],
)
def test_text_that_names_nothing_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        local_path(text)


@pytest.mark.parametrize("name", ["~", "~x", "s3:/bucket"])
def test_a_folder_with_such_a_name_is_reached_by_a_dot(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = local_path(f"./{name}")
    assert path == local_path(path) == tmp_path / name
    assert str(local_path("./plain/x")) == "plain/x"
