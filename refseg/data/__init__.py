"""From a built dataset to batches; here in the order in which data passes through the files.

The index (`ManifestIndex`) knows each ref, its sentences and where its image lies. `order.py` decides which expressions
an epoch's batches hold, from the pseudo-random permutations of `permutation.py`, as a `refseg.reading.Reading` asks.
`loader.py` has threads or processes pack these plans: `packer.py` makes one batch (`batch.py`) in the reused memory of
`buffers.py`, with images decoded by `decode.py`, resized by `transforms.py` and kept by `image_cache.py`, or left
compressed for the device by `jpegs.py`. `worker_death.py` makes one error of a worker's death.

Beside the loader: `samples.py` shows a dataset as torch's `Dataset`, `plan.py` says what a run will read, and
`webdataset.py` streams tars without an index.
"""
