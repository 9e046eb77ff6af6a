"""Referring image segmentation: annotations, shards, models, training, scores."""

__version__ = "0.1.0"
