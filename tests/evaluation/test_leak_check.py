"""A model is not scored on images that it was trained on, unless the user allows it."""

from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.data.index import ManifestIndex
from refseg.errors import UsageError
from refseg.evaluation.leak_check import LeakCheck, check_leaks, leak_statement, leak_warning, refuse_leaks
from refseg.lineage import Lineage, TrainingSet

TOY = Lineage(dataset="toy/refseg", dataset_digest="")
VAL = "toy/refseg val"


def draw(folder: Path, *, num_images: int, seed: int) -> str:
    draw_toy(folder / "source", num_images=num_images, seed=seed, image_size=(96, 96))
    built = folder / "shards"
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=built, workers=1))
    return str(built)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(tmp_path_factory.mktemp("ten"), num_images=10, seed=0)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other pictures with the same COCO ids as those of `ten`, in other splits."""
    return draw(tmp_path_factory.mktemp("twenty"), num_images=20, seed=1)


def trained_on(folder: str, **changes: object) -> Lineage:
    descriptor = ManifestIndex.open(folder, ["train"]).descriptor
    facts = {"root": folder, "split": "train", "dataset": "toy/refseg", "dataset_digest": descriptor.digest}
    return Lineage(**{**facts, **changes})  # type: ignore[arg-type]


def test_a_split_of_other_images_is_clean(ten: str) -> None:
    check = check_leaks([trained_on(ten)], ManifestIndex.open(ten, ["val"]))

    refuse_leaks(check, where="here")
    assert check.num_shared == 0
    assert check.says.endswith("of toy/refseg train, by bytes and COCO's ids")
    assert leak_warning(TOY, check, scored=VAL) == ""
    assert leak_statement(TOY, check, scored=VAL) == f"trained on none of these images: {check.says}"


def test_the_split_that_was_trained_on_is_refused(ten: str) -> None:
    index = ManifestIndex.open(ten, ["train"])
    check = check_leaks([trained_on(ten, root="")], index)

    assert check.num_shared == check.num_images == index.num_images
    with pytest.raises(
        UsageError, match=r"here: 6 of its 6 images were trained on \(toy/refseg train is the train.*leak"
    ):
        refuse_leaks(check, where="here")


def test_another_datasets_split_is_compared_by_the_ids_of_coco(ten: str, twenty: str) -> None:
    train = set(ManifestIndex.open(twenty, ["train"]).image_id.tolist())
    val = set(ManifestIndex.open(ten, ["val"]).image_id.tolist())
    assert val & train

    check = check_leaks([trained_on(twenty)], ManifestIndex.open(ten, ["val"]))

    assert (check.num_shared, check.num_images) == (len(val & train), len(val))
    shared = LeakCheck(num_shared=2, num_images=3, says="x against y")
    assert leak_warning(TOY, shared, scored=VAL) == "LEAKS ALLOWED: 2 of 3 images were trained on (x against y)"
    assert leak_statement(TOY, shared, scored=VAL) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"root": ""}, "a published model does not name the folder"),
        ({"root": "nowhere"}, "nowhere is not available"),
        ({"dataset_digest": "f" * 64}, "now holds another dataset"),
    ],
)
def test_what_could_not_be_compared_is_said(ten: str, twenty: str, changes: dict[str, object], says: str) -> None:
    check = check_leaks([trained_on(twenty, **changes)], ManifestIndex.open(ten, ["val"]))

    refuse_leaks(check, where="here")
    assert check.num_shared is None
    assert check.says.startswith("not compared with the training images of toy/refseg: ")
    assert says in check.says
    assert leak_warning(TOY, check, scored=VAL) == f"LEAKS NOT RULED OUT: {check.says}"
    assert leak_statement(TOY, check, scored=VAL) == ""


def test_a_split_of_the_same_name_is_refused_where_the_images_cannot_be_compared(ten: str, twenty: str) -> None:
    check = check_leaks([trained_on(twenty, root="nowhere")], ManifestIndex.open(ten, ["train"]))

    assert check.num_shared == check.num_images == 6
    with pytest.raises(UsageError, match=r"toy/refseg train is the training set by its name; not compared"):
        refuse_leaks(check, where="here")


def test_training_images_are_looked_for_wherever_they_may_be(ten: str, twenty: str) -> None:
    check = check_leaks([trained_on(twenty, root="nowhere", recipe_root=twenty)], ManifestIndex.open(ten, ["val"]))

    assert check.num_shared == 2
    assert "nowhere" not in check.says


def test_what_a_mix_said_of_itself_counts_when_its_images_are_not_at_hand(ten: str) -> None:
    leaks = {"refcoco/unc": {"toy/refseg val": 2, "toy/refseg testA": 1}}
    trained = TrainingSet(split="train", dataset="mix/all", dataset_digest="a" * 64, leaks=leaks)

    check = check_leaks([trained], ManifestIndex.open(ten, ["val"]))

    assert check == LeakCheck(
        num_shared=2,
        num_images=2,
        says="as mix/all recorded when it was mixed (a published model does not name the folder of its training data)",
    )
