"""Checks a built dataset: descriptor, tars, manifests and their agreement, down to each run length and token.

`dataset` is the check of a whole dataset: it compares the files, gives each shard and each tar of an image pool to a
worker, and compares what the workers found. `descriptor` checks what `refseg.json` says of itself; `shards` checks one
shard: its manifest by `rows`, its tar by `samples`; `pools` checks one tar of an image pool, `index` the index of a
split. What a reader would refuse comes from the functions of `refseg.dataset` that refuse it, as the same `Fault`.
"""

from pipelines.verify.dataset import verify_dataset
from refseg.dataset.faults import Fault

__all__ = ["Fault", "verify_dataset"]
