"""Builds datasets from annotations, checks them and exports them. Nothing here imports torch.

The files are listed in the order in which a build uses them. Each stage is finished for all refs before the next one
starts.

- `options.py` defines the options of a build. `build.py` runs the stages and resumes an interrupted build.
- `sources/` reads annotation files, with one reader per family, into raw records that are not yet checked.
- **survey**: `survey.py` assigns images to shards in two passes over the refs. `survey_tables.py` finds the images in
  one pass over the tables, as files (`images.py`) or in other datasets' tars (`pools.py`). `spill.py` stores the raw
  records on disk, one file per shard.
- **check**: `check.py` joins and checks the records of one shard with `records.py`, `sentences.py`, `shapes.py` and
  `masks.py`. A ref with a fault becomes a reject (`rejects.py`). `published.py` compares counts with the published
  ones. `planning.py` runs survey and check and makes the `BuildPlan` of `build_plan.py`, whose fingerprint covers all
  inputs.
- **build**: `build_shard.py` writes one shard. `convert_images.py` converts its pictures if that is requested,
  `jpeg_faults.py` checks them, `resize.py` reduces them if that is requested, and `tars.py` writes the tar. `engines/`
  runs the shards in local processes or on a Ray cluster.
- **finalize**: `finalize.py` writes the rejects and the descriptor. With `shared_images.py` it reports pictures that
  occur in several splits or under several ids. `build_folder.py` holds names, locks and temporary files of the folder.

`verify/` checks finished datasets, `stats.py` counts them, `mix.py` (with `mix_members.py`) joins them, and `export/`
writes them in other projects' formats. `toy/` draws annotations and pictures to build from.
"""
