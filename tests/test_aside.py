from pathlib import Path

import pytest

from refseg.aside import file_aside, folder_aside, write_aside


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_file_keeps_its_name_until_the_new_one_is_whole(tmp_path: Path, is_shared: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    with file_aside(path, is_shared=is_shared) as aside:
        aside.write_text("half")
        assert path.read_text() == "before"
        aside.write_text("whole")

    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_aside(path, b"before")

    def write_half() -> None:
        with file_aside(path) as aside:
            aside.write_bytes(b"half")
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        write_half()

    assert {name.name: name.read_bytes() for name in tmp_path.iterdir()} == {"a.txt": b"before"}


def test_two_writers_of_one_shared_file_do_not_meet(tmp_path: Path) -> None:
    with file_aside(tmp_path / "a", is_shared=True) as first, file_aside(tmp_path / "a", is_shared=True) as second:
        first.write_text("first")
        second.write_text("second")

    assert (tmp_path / "a").read_text() == "first"


def test_a_folder_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("1", "2"):
        with folder_aside(out, replace=True) as folder:
            (folder / "a").write_text(content)

    with pytest.raises(OSError, match="not empty"), folder_aside(out) as folder:
        (folder / "a").write_text("3")

    assert (out / "a").read_text() == "2"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_with_the_longest_name_there_can_be_is_written(tmp_path: Path) -> None:
    write_aside(tmp_path / ("a" * 255), "text", synced=True)

    assert (tmp_path / ("a" * 255)).read_text() == "text"
