"""A built dataset: its format, its files, and the code that opens and reads it. Nothing here imports torch.

The files, in the order in which a build writes the data and a reader reads it:

- `schema` defines records, the columns of a manifest and the known datasets.
- `manifest_writer` writes records as Parquet.
- `index_rows`, `packed_runs` and `index_file` store the rows of a split's manifests as flat arrays in one file.
- `descriptor` defines `refseg.json`, the file that makes a folder a dataset.
- `faults` describes what is wrong with a dataset, and the error that a reader raises for it.
- `image_pools` finds the folders of other datasets whose tars hold images of this one.
- `file_checks` compares file names, sizes and hashes with the descriptor.
- `row_checks`, `shape_checks` and `index_checks` check rows, masks and the arrays of an index.
- `manifest_reader` and `rejects` read Parquet files and check them; `arrow_arrays` turns Arrow columns into arrays.
- `built` defines `BuiltDataset`, which every reader opens: splits, rows of chosen columns, tars.
- `split_index` maps the index of a split into memory.
- `shard_cache`, `read_ahead` and `shard_files` read samples from tars, on this machine or at a URL.
- `row_images` reads the pictures of rows; `same_images` finds the images that two datasets share.
"""
