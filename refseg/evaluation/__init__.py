"""Scores: what a model or another project predicted is compared with the targets of a split, and reported.

The files in the order of the data:

- `options.py`: what a caller asks for; `protocols.py`: the rules by which masks are made and compared.
- `leak_check.py`: whether a model was trained on images of the split.
- `inference.py`: mask logits to binary masks; `ground_truth.py`: the targets they are compared with.
- `evaluate.py`: one pass of a model over a split, with `partial.py`: what it counted so far, for an interrupted pass.
- `predictions.py`, `score_masks.py`: masks of other projects, read and counted instead of such a pass.
- `rows.py`: the table of pixel counts, one row per sentence.
- `metrics.py`, `no_target.py`: a score's definition; `scores.py`: all scores of a table by one protocol.
- `bootstrap.py`: how sure a score or a difference is; `breakdown.py`: scores by group.
- `origin.py`, `results.py`: what was scored, and rows and scores on disk.
- `explanation.py`, `heat_maps.py`, `overlay.py`: what a model looked at, and masks, drawn over a picture.
- `examples.py`, `curves.py`, `report.py`, `comparison.py`, `pages.py`: the page of a run, or of several side by side.
"""
