import pytest

from refseg.config import EvalConfig
from refseg.errors import UsageError
from refseg.evaluation.protocols import CRIS, ORIGINAL, PROTOCOLS, find_protocol, find_protocols


def test_protocols_are_found_by_name() -> None:
    assert find_protocol("original") is ORIGINAL
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())
    with pytest.raises(UsageError, match="unknown protocol 'mine'; expected one of original, cris, lavt, lisa, rela"):
        find_protocol("mine")


def test_several_are_found_once_each_in_the_order_asked_for() -> None:
    assert find_protocols(["cris", "original", "cris"]) == (CRIS, ORIGINAL)
    assert find_protocols(["cris", "all"]) == (CRIS, *(p for p in PROTOCOLS.values() if p is not CRIS))


def test_a_recipe_may_name_each_of_them() -> None:
    for name in PROTOCOLS:
        assert EvalConfig.model_validate({"protocol": name}).protocol == name
