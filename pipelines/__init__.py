"""Offline and torch-free: annotations to records to manifests to shards.

A build passes through these files, in this order; each stage is finished for all refs before the next one begins:

- `options.py`: what a user asks of a build. `build.py` strings the stages together and resumes a killed build.
- `sources/`: one reader per annotation family, to raw records that nothing has checked yet.
- **survey**: `survey.py` assigns images to shards in two passes over the refs; `survey_tables.py` finds the images
  (`images.py`: files, `pools.py`: other datasets' tars) in one pass over the tables; `spill.py` keeps the raw records
  on disk, sorted by shard.
- **check**: `check.py` joins and checks the records of one shard, by `records.py` (with `sentences.py`, `shapes.py` and
  `masks.py`); a ref at fault becomes one of `rejects.py`. `published.py` holds the published counts.
  `planning.py` strings survey and check to the `BuildPlan` of `build_plan.py`, whose fingerprint covers all inputs.
- **build**: `build_shard.py` writes one shard: `jpeg_faults.py` checks its pictures, `resize.py` shrinks them where
  that is asked for, `tars.py` writes the tar. `engines/` runs it over processes or on a Ray cluster.
- **finalize**: `finalize.py` writes the rejects and the descriptor, and with `shared_images.py` reports pictures with
  several identities. `build_folder.py` holds the names, locks and temporary files of a build's folder.

Finished datasets are checked by `verify/`, counted by `stats.py`, joined by `mix.py` (with `mix_members.py`) and
written in other projects' forms by `export/`. `toy/` draws annotations and pictures to build from.
"""
