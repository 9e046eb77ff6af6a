"""Exports built datasets to the file formats of other projects.

`run` defines the options, writes the export to a temporary folder, renames it when it is complete, and writes the
report. `dataset` reads the rows and pictures of the dataset. Each format is a module with a function `write`: `refer`,
`cris_lmdb`, `coco` and `parquet_hf`.
"""
