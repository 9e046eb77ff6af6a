"""Checks a built dataset: descriptor, tars, manifests and their agreement, down to each run length and token.

`dataset` checks a whole dataset. It compares the files, gives each shard and each tar of an image pool to a worker, and
compares the results. `descriptor` checks `refseg.json`. `shards` checks one shard: its manifest with `rows` and its tar
with `samples`. `pools` checks one tar of an image pool, and `index` checks the index of a split. Whatever a reader
would refuse is found by the same functions of `refseg.dataset`, so that it is reported as the same `Fault`.
"""

from pipelines.verify.dataset import verify_dataset
from refseg.dataset.faults import Fault

__all__ = ["Fault", "verify_dataset"]
