"""Draws a toy dataset in REFER's own source format: scenes, pictures, sentences, files."""

from pipelines.toy.draw import ToySummary, draw_toy

__all__ = ["ToySummary", "draw_toy"]
