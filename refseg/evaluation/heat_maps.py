"""Draws maps of what a model attended to over a picture, each with a caption."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from refseg.evaluation.explanation import SentenceExplanation
from refseg.evaluation.overlay import TARGET

_COLUMNS = 4
_GAP = 8
_FONT_SIZE = 14
_LINE = 18
_PAPER, _INK = (255, 255, 255), (28, 29, 33)


def draw_heat_map(picture: UInt8[np.ndarray, "H W 3"], heat: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a map in yellow over a dimmed grey version of the picture.

    Args:
        picture: RGB image. It is scaled to the map's size.
        heat: Map, 0 to 1.
    """
    grey = Image.fromarray(picture).convert("L").resize((heat.shape[1], heat.shape[0]), Image.Resampling.LANCZOS)
    dim = 0.7 * np.asarray(grey, np.float64)[:, :, None]
    share = 0.8 * heat[:, :, None]
    return np.rint((1 - share) * dim + share * np.array(TARGET)).astype(np.uint8)


def draw_explanation(
    picture: UInt8[np.ndarray, "H W 3"], explanation: SentenceExplanation
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Draw all maps of an explanation as tiles. Return None if there are no maps.

    FCNet's key maps are sorted by decreasing alpha. The caption of a key map shows the number and alpha of its
    emphasis, and the three words with the largest weights.

    Args:
        picture: RGB image.
        explanation: Explanation of a sentence about the picture.
    """
    tiles: list[tuple[Float[np.ndarray, "h w"], tuple[str, ...]]] = []
    if explanation.location is not None:
        tiles.append((explanation.location, ("location prior",)))
    if explanation.key_maps is not None:
        tiles += [(explanation.key_maps[token], _caption(explanation, token)) for token in explanation.order]
    if not tiles:
        return None
    font = ImageFont.load_default(_FONT_SIZE)
    height, width = tiles[0][0].shape
    width_of_tile = max(width, 160)  # leaves space for the caption of a tall picture
    height_of_tile = height + _LINE * max(len(lines) for _, lines in tiles)
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * (width_of_tile + _GAP) + _GAP, rows * (height_of_tile + _GAP) + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    for number, (heat, lines) in enumerate(tiles):
        left = _GAP + number % columns * (width_of_tile + _GAP)
        top = _GAP + number // columns * (height_of_tile + _GAP)
        page.paste(Image.fromarray(draw_heat_map(picture, heat)), (left, top))
        for line, text in enumerate(lines):
            pen.text((left, top + height + line * _LINE), _fit(text, width_of_tile, font), _INK, font)
    return np.asarray(page)


def _caption(explanation: SentenceExplanation, token: int) -> tuple[str, ...]:
    name = f"#{token}" if explanation.alpha is None else f"#{token}  alpha {explanation.alpha[token]:+.2f}"
    if explanation.word_weights is None:
        return (name,)
    weights = explanation.word_weights[token]
    most = np.argsort(-weights, kind="stable")[:3]
    return name, ", ".join(f"{explanation.words[word]} {weights[word]:.0%}" for word in most)


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Truncate a text with an ellipsis if it is wider than the tile."""
    shown = text
    while shown and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text.rstrip()}..."
    return shown
