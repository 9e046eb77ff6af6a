"""Paints a scene with a slightly textured background, objects with smooth edges, and a crowd of dots."""

import io
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from pipelines.masks import encode_mask
from pipelines.toy.scenes import Scene

_OVERSAMPLING = 4
_DOT_RGB = (96, 82, 70)


def paint(scene: Scene, rng: Random) -> bytes:
    """Paint a scene.

    Returns:
        A JPEG in RGB with quality 90. The same arguments give the same bytes with the same Pillow version.
    """
    height, width = scene.image_size
    image = _background(rng, scene.image_size)
    for thing in scene.things:
        left, top, box_width, box_height = thing.box_xywh
        corner = (int(left) - 1, int(top) - 1)
        window = Image.new("L", ((int(box_width) + 4) * _OVERSAMPLING, (int(box_height) + 4) * _OVERSAMPLING))
        pen = ImageDraw.Draw(window)
        for polygon in thing.polygons:
            pen.polygon(
                # Pillow's coordinates refer to pixel centres, COCO's to pixel corners.
                [tuple((v - c) * _OVERSAMPLING - 0.5 for v, c in zip(xy, corner, strict=True)) for xy in polygon],
                fill=255,
            )
        image.paste(thing.rgb, corner, window.reduce(_OVERSAMPLING))
    if scene.crowd_dots:
        image.paste(_DOT_RGB, (0, 0, width, height), _crowd_mask(scene))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def crowd_run_lengths(scene: Scene) -> list[int]:
    """Return the crowd as COCO's uncompressed run lengths, in column order. The first run consists of zeros."""
    return list(encode_mask(np.asarray(_crowd_mask(scene)) > 0).counts)


def _crowd_mask(scene: Scene) -> Image.Image:
    height, width = scene.image_size
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    for x, y in scene.crowd_dots:
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=255)
    return mask


def _background(rng: Random, image_size: tuple[int, int]) -> Image.Image:
    """Paint a nearly grey background with a slow gradient and fine grain, unlike the colours of objects."""
    height, width = image_size
    base = rng.randint(100, 160)
    tint = [rng.randint(-14, 14) for _ in range(3)]
    knots = bytearray()
    for _ in range(4 * 4):
        light = rng.randint(-22, 22)
        knots += bytes(base + light + t for t in tint)
    gradient = Image.frombytes("RGB", (4, 4), bytes(knots)).resize((width, height), Image.Resampling.BICUBIC)
    grain_size = (max(1, width // 3), max(1, height // 3))
    grain = Image.frombytes("L", grain_size, rng.randbytes(grain_size[0] * grain_size[1]))
    grain = grain.resize((width, height), Image.Resampling.BILINEAR).point([v // 9 for v in range(256)])
    return ImageChops.subtract(gradient, Image.merge("RGB", [grain] * 3))
