import math

import pytest
import torch

from refseg.models.model import ModelOutput
from refseg.training.losses import LossWeights, location_target, training_loss

LOG2 = math.log(2)


def loss_of(logits: torch.Tensor, masks: torch.Tensor, *, pad: list[bool], num_global: int, ranks: int = 1) -> float:
    is_pad = torch.tensor(pad)
    return float(
        training_loss(
            ModelOutput(logits), masks, LossWeights(), is_pad=is_pad, num_global=torch.tensor(num_global),
            num_processes=ranks,
        )
    )  # fmt: skip


def test_the_target_is_the_objects_share_of_the_pixels_a_score_stands_for() -> None:
    # One score for 4 x 4 pixels, 4 of them object: t = 1/4. At logit ln 3 the probability is 3/4, so
    # -(1/4 ln 3/4 + 3/4 ln 1/4).
    masks = torch.zeros(1, 4, 4, dtype=torch.uint8)
    masks[0, :2, :2] = 1

    loss = loss_of(torch.full((1, 1, 1, 1), math.log(3)), masks, pad=[False], num_global=1)

    assert loss == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)), rel=1e-6)


def test_unequal_shares_of_two_ranks_average_to_the_mean_over_all_samples() -> None:
    # Empty targets at logits 0, ln 3, -ln 3: ln 2, ln 4, ln 4/3. Rank 0 holds one, rank 1 two and a pad.
    logits = torch.tensor([0.0, math.log(3), -math.log(3), math.inf])[:, None, None, None].expand(4, 1, 2, 2)
    masks = torch.zeros(4, 8, 8, dtype=torch.uint8)

    first = loss_of(logits[:1], masks[:1], pad=[False], num_global=3, ranks=2)
    second = loss_of(logits[1:], masks[1:], pad=[False, False, True], num_global=3, ranks=2)

    assert (first + second) / 2 == pytest.approx((LOG2 + math.log(4) + math.log(4 / 3)) / 3, rel=1e-6)


def test_a_pad_gives_no_gradient_even_where_its_score_is_infinite() -> None:
    logits = torch.tensor([0.0, math.inf])[:, None, None, None].requires_grad_()
    loss = training_loss(
        ModelOutput(logits),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
        LossWeights(),
        is_pad=torch.tensor([False, True]),
        num_global=torch.tensor(1),
        num_processes=1,
    )
    loss.backward()

    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [0.5, 0.0]


def test_dice_adds_its_weighted_share() -> None:
    # 2 x 2 scores at logit 0, the first one's pixels are object: overlap 0.5, areas 2 + 1: 1 - (1 + 1) / (3 + 1).
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, :4, :4] = 1
    loss = training_loss(
        ModelOutput(torch.zeros(1, 1, 2, 2)),
        masks,
        LossWeights(dice=3.0),
        is_pad=torch.tensor([False]),
        num_global=torch.tensor(1),
        num_processes=1,
    )

    assert float(loss) == pytest.approx(LOG2 + 3 * 0.5, rel=1e-6)


def test_location_and_reconstruction_add_their_weighted_shares() -> None:
    # At logit 0 every cross-entropy is ln 2; the reconstruction error is 0.4.
    loss = training_loss(
        ModelOutput(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1), torch.tensor([0.4])),
        torch.zeros(1, 8, 8, dtype=torch.uint8),
        LossWeights(location=0.5, reconstruction=0.1),
        is_pad=torch.tensor([False]),
        num_global=torch.tensor(1),
        num_processes=1,
    )

    assert float(loss) == pytest.approx(1.5 * LOG2 + 0.04, rel=1e-6)


def test_a_location_target_stands_on_the_masks_box() -> None:
    # Rows 2 to 5 and columns 0 to 7 of 8 x 8; on 4 x 4 cells of 2 x 2 the box is rows 1 and 2, all columns.
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, 2:6] = 1

    area, ellipse, gaussian = (location_target(masks, (4, 4), kind) for kind in ("area", "ellipse", "gaussian"))

    assert area[0].tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]
    # Centres are 1 pixel above and below the middle (half height 2), 1 and 3 aside (half width 4).
    assert ellipse[0].tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]
    assert gaussian[0, 1].tolist() == pytest.approx(
        [math.exp(-2 * (0.25 + x)) for x in (9 / 16, 1 / 16, 1 / 16, 9 / 16)]
    )
    assert not torch.stack([area[1], ellipse[1], gaussian[1]]).any()
