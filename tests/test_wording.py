"""Words that messages share."""

import pytest

from refseg.dataset.schema import find_dataset
from refseg.errors import UsageError
from refseg.wording import counted, did_you_mean, printable


def test_a_number_goes_with_the_noun_in_the_right_form() -> None:
    assert counted(1, "fault") == "1 fault"
    assert counted(0, "fault") == "0 faults"
    assert counted(1200, "process", "processes") == "1,200 processes"


@pytest.mark.parametrize(
    ("found", "known", "said"),
    [
        ("evalute", ("evaluate", "export"), "; did you mean evaluate?"),
        ("TESTA", ("train", "testA"), "; did you mean testA?"),
        ("zebra", ("train", "testA"), ""),
    ],
)
def test_a_name_that_is_nearly_known_is_recognised(found: str, known: tuple[str, ...], said: str) -> None:
    assert did_you_mean(found, known) == said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("RefCOCO", "expected one of refcoco/unc, refcoco/google"),
        ("RefCOCO/UNC", "did you mean refcoco/unc?"),
        ("RefCOCO+/unc", "did you mean refcocoplus/unc?"),
        ("refcoko/unc", "did you mean refcoco/unc?"),
        ("Custom/photos", "did you mean custom/photos?"),
    ],
)
def test_a_dataset_in_capitals_or_misspelt_is_recognised(found: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        find_dataset(found)
    assert said in str(error.value)


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\tb\nä 犬") == "a\tb\nä 犬"
    assert printable("\x1b[2Jx\rd\x9b\x7f") == r"\x1b[2Jx\rd\x9b\x7f"
    assert printable("\u202egpj.exe \udcff") == r"\u202egpj.exe \udcff"
