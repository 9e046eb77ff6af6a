"""A built dataset: its format, its files, and the one place where it is opened and read. Nothing here imports torch.

In the order in which a build writes and a reader reads:

- `schema`: records, the columns of a manifest, the datasets there are.
- `manifest_writer`: records to Parquet.
- `index_rows`, `packed_runs`, `index_file`: the rows of a split's manifests as flat arrays, in one file.
- `descriptor`: `refseg.json`, which makes a folder a dataset.
- `faults`: what is wrong with a dataset, and the error with which a reader refuses it.
- `image_pools`: where the tars of other datasets lie that hold images of this one.
- `file_checks`: which files there must be, with which sizes and hashes.
- `row_checks`, `shape_checks`, `index_checks`: what rows, masks and the arrays of an index must be.
- `manifest_reader`, `rejects`: rows out of Parquet, compared and checked; `arrow_arrays`: columns as arrays.
- `built`: `BuiltDataset`, which every reader opens: splits, rows of chosen columns, tars.
- `split_index`: the index of a split, mapped into memory.
- `shard_cache`, `read_ahead`, `shard_files`: samples out of tars, on this machine or behind a URL.
- `row_images`: the pictures of rows; `same_images`: which images two datasets share.
"""
