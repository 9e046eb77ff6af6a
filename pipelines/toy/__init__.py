"""Draws a toy dataset in REFER's source format.

`scenes` draws the objects of a scene, `sentences` describes them, `pictures` paints the scene, `records` makes the
records of COCO and REFER, and `draw` writes the files.
"""

from pipelines.toy.draw import ToySummary, draw_toy

__all__ = ["ToySummary", "draw_toy"]
