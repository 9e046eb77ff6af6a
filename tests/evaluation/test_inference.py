import pytest
import torch

from refseg.data.transforms import Geometry
from refseg.evaluation.inference import masks_at_original_size
from refseg.evaluation.protocols import ORIGINAL


def test_a_probability_of_exactly_one_half_is_not_object() -> None:
    geometry = Geometry(kind="stretch", size=(32, 32))
    logits = torch.tensor([0.0, 1e-3]).view(2, 1, 1, 1).expand(2, 1, 8, 8)

    masks = masks_at_original_size(logits, original_size=(20, 30), geometry=geometry, protocol=ORIGINAL)

    assert masks.shape == (2, 20, 30)
    assert not masks[0].any()
    assert masks[1].all()


def test_probabilities_are_resized_and_not_logits() -> None:
    # Halfway between logits of 4 and -2 lies 1, an object; between their probabilities 0.98 and 0.12 lies 0.55. With
    # -2 and 20: logits pass zero after a tenth of the way, probabilities one half near the middle.
    geometry = Geometry(kind="stretch", size=(32, 32))
    logits = torch.full((1, 1, 8, 8), -2.0)
    logits[..., 4:] = 20.0

    masks = masks_at_original_size(logits, original_size=(32, 32), geometry=geometry, protocol=ORIGINAL)

    # Pixels 14 to 17 lie between the two: probabilities 0.23, 0.45, 0.67, 0.89; logits 0.75, 6.25, 11.75, 17.25.
    assert masks[0, 0].nonzero().flatten().tolist() == list(range(16, 32))


@pytest.mark.parametrize("original_size", [(64, 32), (32, 64)])
def test_the_border_of_the_letterbox_belongs_to_nothing(original_size: tuple[int, int]) -> None:
    geometry = Geometry(kind="letterbox", size=(64, 64))
    top, left, height, width = geometry.placed(original_size)
    logits = torch.full((1, 1, 16, 16), 9.0)
    logits[..., top // 4 : (top + height) // 4, left // 4 : (left + width) // 4] = -9.0

    masks = masks_at_original_size(logits, original_size=original_size, geometry=geometry, protocol=ORIGINAL)

    # Only the outermost pixels of the picture feel the border, by interpolation.
    assert not masks[0, 2:-2, 2:-2].any()
