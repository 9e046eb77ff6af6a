"""From a built dataset to batches.

The files, in the order in which data passes through them:

- `index` (`ManifestIndex`) holds each ref, its sentences, and the tar and offset of its image.
- `order` decides which expressions the batches of an epoch contain, as a `refseg.reading.Reading` specifies, by the
  pseudo-random permutations of `permutation`.
- `loader` gives these plans to threads or processes, which pack the batches.
- `packer` packs one batch (`batch`) into the reused memory of `buffers`.
- `decode` decodes its images, `transforms` resizes them, and `image_cache` stores the results; alternatively `jpegs`
  leaves them compressed, to be decoded on the device.
- `worker_death` turns every symptom of a dead worker process into one error.

Besides the loader, `samples` offers a dataset as torch's `Dataset`, `plan` computes what a run will read, and
`webdataset` streams tars without an index.
"""
