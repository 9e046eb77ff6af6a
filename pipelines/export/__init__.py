"""Built datasets to the files that other projects read.

`run` is one export: options, the folder that appears whole or not at all, the report. `dataset` gives the rows and
pictures of the dataset. Each format is a file with a function `write`: `refer`, `cris_lmdb`, `coco`, `parquet_hf`.
"""
