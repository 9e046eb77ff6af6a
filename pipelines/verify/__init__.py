"""Checks the descriptor, tars and manifests of a built dataset, and compares them down to each run length and token.

`dataset` checks a whole dataset. It compares the files, gives each shard and each tar of an image pool to a worker, and
compares the results. `descriptor` checks `refseg.json`. `shards` checks one shard: its manifest with `rows` and its tar
with `samples`. `pools` checks one tar of an image pool, and `index` checks the index of a split. Faults that a reader
would refuse are found with the reader's own functions in `refseg.dataset`, and reported as the same `Fault`.
"""

from pipelines.verify.dataset import verify_dataset
from refseg.dataset.faults import Fault

__all__ = ["Fault", "verify_dataset"]
