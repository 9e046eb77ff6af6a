"""The loader itself refuses wrong names and numbers, without the type checks that tests switch on."""

import json
import subprocess
from pathlib import Path

from tests.warm_python import python

WRONG = {
    "sampling": ("image", "'ref' or 'sentence' or 'images'"),
    "remainder": ("keep", "'drop' or 'pad'"),
    "worker_kind": ("process", "'threads' or 'processes'"),
    "decode": ("gpu", "'cpu' or 'device'"),
    "geometry": ("box", "'letterbox' or 'stretch'"),
    "a side of the input": (0, "a whole number, at least 1"),
    "global_batch": (2.5, "a whole number, at least 1"),
    "num_workers": ("two", "a whole number, at least 0"),
    "expressions_per_image": ("some", "a whole number, at least 1, or 'all'"),
}
PROGRAM = """
import json, sys
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.errors import UsageError
from refseg.reading import Reading

index, found = ManifestIndex.open(sys.argv[1], ["train"]), {}
for name, value in json.loads(sys.argv[2]).items():
    options = {"geometry": "stretch", "side": 8, "sampling": "images", "global_batch": 4, "num_tokens": 12, "seed": 0,
               "shuffle": True, "remainder": "pad", {"a side of the input": "side"}.get(name, name): value}
    try:
        RefLoader(index, Reading(input_size=(8, options.pop("side")), **options))
    except UsageError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def test_a_name_or_number_that_cannot_be_is_refused_with_what_can(dataset: Path) -> None:
    values = json.dumps({name: value for name, (value, _) in WRONG.items()})
    done = subprocess.run([python(), "-c", PROGRAM, str(dataset), values], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {
        name: f"{name} is {value!r}; expected {expected}" for name, (value, expected) in WRONG.items()
    }
