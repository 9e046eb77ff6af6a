"""A built dataset: its format, its files, and the one way to open and read it. Nothing here imports torch.

In the order in which a build writes and a reader reads:

- `schema`: records, the columns of a manifest, the datasets there are.
- `row_checks`, `shape_checks`: what rows and masks must be.
- `manifest_writer`, `manifest_reader`: rows to Parquet and back; a reader compares hashes and checks every row.
- `descriptor`: `refseg.json`, which makes a folder a dataset.
- `image_pools`: other datasets whose tars hold this one's images.
- `built`: a dataset that is open: its rows, and where each image lies.
- `shard_files`, `shard_cache`, `read_ahead`: samples out of tars, here or behind a URL.
"""
