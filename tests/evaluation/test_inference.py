import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refseg.data.transforms import Geometry
from refseg.evaluation.inference import compared_masks, masks_at_original_size
from refseg.evaluation.protocols import CRIS, LAVT, LISA, ORIGINAL, PROTOCOLS, RELA, Protocol

STRETCH = Geometry(kind="stretch", size=(32, 32))


def smooth_logits(seed: int, number: int = 2) -> torch.Tensor:
    coarse = torch.randn(number, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return 4 * F.interpolate(coarse, (8, 8), mode="bicubic")


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_a_value_of_exactly_the_threshold_is_not_object(protocol: Protocol) -> None:
    tie = 0.0 if protocol.threshold in (0.0, 0.5) else math.log(protocol.threshold / (1 - protocol.threshold))
    logits = torch.tensor([tie - 1e-4 if protocol is CRIS else tie, tie + 1e-3]).view(2, 1, 1, 1).expand(2, 1, 8, 8)

    # Twice the input's size: weights are multiples of a quarter, so that halves stay halves on any machine.
    masks = compared_masks(logits, original_size=(64, 64), geometry=STRETCH, protocol=protocol)

    inside = masks[:, 4:-4, 4:-4]  # under `cris` the zeros around the picture reach into it
    assert not inside[0].any()
    assert inside[1].all()


@pytest.mark.parametrize("kind", ["letterbox", "stretch"])
def test_masks_have_the_size_at_which_they_are_compared(kind) -> None:
    geometry = Geometry(kind=kind, size=(32, 64))
    for protocol, size in (
        (ORIGINAL, (20, 30)),
        (CRIS, (20, 30)),
        (LISA, (20, 30)),
        (LAVT, (480, 480)),
        (RELA, (480, 480)),
    ):
        asked = {"original_size": (20, 30), "geometry": geometry, "protocol": protocol}
        assert compared_masks(smooth_logits(0), **asked).shape == (2, *size)
        assert masks_at_original_size(smooth_logits(0), **asked).shape == (2, 20, 30)


def test_probabilities_are_resized_and_not_logits() -> None:
    # Halfway between logits of 4 and -2 lies 1, an object; between their probabilities 0.98 and 0.12 lies 0.55. With
    # -2 and 20: logits pass zero after a tenth of the way, probabilities one half near the middle.
    logits = torch.full((1, 1, 8, 8), -2.0)
    logits[..., 4:] = 20.0

    masks = masks_at_original_size(logits, original_size=(32, 32), geometry=STRETCH, protocol=ORIGINAL)

    # Pixels 14 to 17 lie between the two: probabilities 0.23, 0.45, 0.67, 0.89; logits 0.75, 6.25, 11.75, 17.25.
    assert masks[0, 0].nonzero().flatten().tolist() == list(range(16, 32))
    of_logits = masks_at_original_size(logits, original_size=(32, 32), geometry=STRETCH, protocol=LISA)
    assert of_logits[0, 0].nonzero().flatten().tolist() == list(range(14, 32))


@pytest.mark.parametrize("original_size", [(64, 32), (32, 64)])
@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_the_border_of_the_letterbox_belongs_to_nothing(original_size: tuple[int, int], protocol: Protocol) -> None:
    geometry = Geometry(kind="letterbox", size=(64, 64))
    top, left, height, width = geometry.placed(original_size)
    logits = torch.full((1, 1, 16, 16), 9.0)
    logits[..., top // 4 : (top + height) // 4, left // 4 : (left + width) // 4] = -9.0

    masks = compared_masks(logits, original_size=original_size, geometry=geometry, protocol=protocol)

    # Interpolation with the border affects only the outermost pixels of the picture.
    margin = 3 * masks.shape[-1] // 32
    assert not masks[0, margin:-margin, margin:-margin].any()


def in_480(logits: torch.Tensor, *, align_corners: bool) -> torch.Tensor:
    """Return the logits at 480 x 480, to leave out pixels whose decision depends on rounding."""
    return F.interpolate(logits, (480, 480), mode="bilinear", align_corners=align_corners)[:, 0]


def test_lavt_is_the_argmax_of_two_classes_enlarged_with_aligned_corners() -> None:
    """Compute the mask as `segmentation.py` and `test.py` of LAVT do, whose input is 480 x 480."""
    logits = F.interpolate(smooth_logits(1), (120, 120), mode="bilinear")
    classes = torch.cat([torch.zeros_like(logits), logits], dim=1)
    theirs = F.interpolate(classes, (480, 480), mode="bilinear", align_corners=True).argmax(1)

    ours = compared_masks(
        logits, original_size=(333, 500), geometry=Geometry(kind="stretch", size=(480, 480)), protocol=LAVT
    )

    certain = in_480(logits, align_corners=True).abs() > 1e-5
    assert certain.float().mean() > 0.99
    assert torch.equal(ours[certain], theirs.bool()[certain])


def test_rela_is_the_argmax_of_two_enlarged_classes() -> None:
    """Compute the mask as `GRES.py` of ReLA does: bilinear, then the sigmoid of each class."""
    logits = F.interpolate(smooth_logits(2), (120, 120), mode="bilinear")
    classes = torch.cat([-logits / 2, logits / 2], dim=1)
    theirs = F.interpolate(classes, (480, 480), mode="bilinear", align_corners=False).sigmoid().argmax(1)

    ours = compared_masks(
        logits, original_size=(333, 500), geometry=Geometry(kind="stretch", size=(480, 480)), protocol=RELA
    )

    certain = in_480(logits, align_corners=False).abs() > 1e-5  # nearer to 0 both sigmoids are rounded to one half
    assert certain.float().mean() > 0.99
    assert torch.equal(ours[certain], theirs.bool()[certain])


def test_lisa_cuts_the_border_off_and_resizes_logits() -> None:
    """Compute the mask as `postprocess_masks` of SAM does.

    It resizes to the input's size, cuts out the part that the picture fills, and resizes to the picture's size.
    """
    geometry = Geometry(kind="letterbox", size=(64, 64))
    top, left, height, width = geometry.placed((30, 50))
    at_input = F.interpolate(smooth_logits(3), (64, 64), mode="bilinear", align_corners=False)
    cut = at_input[..., top : top + height, left : left + width]
    theirs = F.interpolate(cut, (30, 50), mode="bilinear", align_corners=False)[:, 0] > 0

    assert torch.equal(
        compared_masks(smooth_logits(3), original_size=(30, 50), geometry=geometry, protocol=LISA), theirs
    )


def cubic(distance: np.ndarray) -> np.ndarray:
    """Return the cubic weight of a pixel at a distance (Keys 1981), with a = -0.75 as in OpenCV and torch."""
    a, x = -0.75, np.abs(distance)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def weights(number: int, places: np.ndarray) -> np.ndarray:
    """Return the weight of each of `number` pixels at each position, with zeros beyond them: `(positions, number)`."""
    return cubic(places[:, None] - np.arange(number)[None])


@pytest.mark.parametrize(
    ("kind", "original_size"), [("letterbox", (30, 50)), ("stretch", (50, 30)), ("letterbox", (90, 20))]
)
def test_cris_enlarges_with_aligned_corners_and_warps_back_with_zeros_around(kind, original_size) -> None:
    """Compute the mask as `engine.py` of CRIS does, with both cubic steps as sums over weighted pixels."""
    size = (48, 64)
    geometry = Geometry(kind=kind, size=size)
    probabilities = smooth_logits(4).sigmoid()[:, 0].double().numpy()
    # First step: corner on corner, the edge repeated beyond it.
    steps = []
    for number in size:
        places = np.linspace(0, 7, number)
        spread = weights(12, places + 2)  # two repeated pixels on either side
        spread[:, 2] += spread[:, :2].sum(1)
        spread[:, 9] += spread[:, 10:].sum(1)
        steps.append(spread[:, 2:10])
    at_input = steps[0] @ probabilities @ steps[1].T
    # Second step: the centres of the picture's pixels at their positions in the input.
    top, left, height, width = geometry.placed(original_size)
    rows = (np.arange(original_size[0]) + 0.5) * height / original_size[0] + top - 0.5
    columns = (np.arange(original_size[1]) + 0.5) * width / original_size[1] + left - 0.5
    warped = weights(size[0], rows) @ at_input @ weights(size[1], columns).T

    masks = compared_masks(smooth_logits(4), original_size=original_size, geometry=geometry, protocol=CRIS).numpy()

    certain = np.abs(warped - 0.35) > 1e-5
    assert certain.mean() > 0.99
    assert 0.1 < (warped > 0.35).mean() < 0.9
    assert np.array_equal(masks[certain], (warped > 0.35)[certain])
