"""Measures a forward pass whose sentences share an image, and the share of a GPU's peak that training steps reach.

    python benchmarks/model.py [--encoder clip_resnet50] [--rounds 3]

On a CPU it runs seven sentences of one image in three ways: with the image encoded again for each sentence, with the
image encoded once, and with batch norms folded in addition. On a GPU, if there is one, it runs training steps of FCNet
with ResNet-101 in bf16, eager and compiled, with one and with several sentences per image. It prints their share of the
peak that a large bf16 matrix product reaches.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from refseg.model_config import FCNetConfig, ImageEncoderName
from refseg.models import build_model
from refseg.models.cost import count_cost
from refseg.models.folding import fold_batch_norms
from refseg.models.model import SegmentationModel
from refseg.training.losses import LossWeights, training_loss
from refseg.training.step import CompiledModel

SIDE, NUM_TOKENS, NUM_SENTENCES = 480, 17, 7
TRAIN_REFS, EPOCHS, PAPER_HOURS, PAPER_CARDS = 42_404, 50, 18.6, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="clip_resnet50", help="image encoder of the first part")
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of interleaved rounds; the median is printed (default: 3)"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    compare_forward(args.encoder, args.rounds)
    if torch.cuda.is_available():
        compare_training()
    else:
        print("\nno GPU was found: training steps are not measured")


@torch.inference_mode()
def compare_forward(encoder: ImageEncoderName, rounds: int) -> None:
    """Measure the seconds of seven sentences in three ways, and the largest difference of their logits."""
    model = build_model(FCNetConfig(image_encoder=encoder), input_size=(SIDE, SIDE)).eval()
    folded = fold_batch_norms(model)
    image = torch.randn(1, 3, SIDE, SIDE)
    token_ids = torch.randint(1, 49406, (NUM_SENTENCES, NUM_TOKENS))
    token_mask = torch.ones(NUM_SENTENCES, NUM_TOKENS, dtype=torch.bool)
    alone, shared = torch.zeros(1, dtype=torch.int64), torch.zeros(NUM_SENTENCES, dtype=torch.int64)

    def plain() -> torch.Tensor:
        return torch.cat([
            model(image, token_ids[i : i + 1], token_mask[i : i + 1], alone).mask_logits for i in range(NUM_SENTENCES)
        ])  # fmt: skip

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "plain: the image again for each sentence": plain,
        "shared: the image once": lambda: model(image, token_ids, token_mask, shared).mask_logits,
        "shared, batch norms folded": lambda: folded(image, token_ids, token_mask, shared).mask_logits,
    }
    expected = plain()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            scores = way()
            seconds[name].append(time.perf_counter() - begin)
            errors[name] = float((scores - expected).abs().max())
    base = statistics.median(seconds["plain: the image again for each sentence"])
    print(
        f"FCNet, {encoder}, {SIDE} x {SIDE}, {NUM_SENTENCES} sentences of one image, {torch.get_num_threads()} threads"
    )
    print(f"{'':44}{'seconds':>8}{'times':>7}{'largest difference':>20}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:44}{median:>8.2f}{base / median:>6.2f}x{errors[name]:>20.1e}")


def compare_training() -> None:
    """Measure training steps of FCNet-R101 in bf16 on one GPU."""
    torch.set_float32_matmul_precision("high")
    peak = matrix_peak()
    cost = count_cost(FCNetConfig(image_encoder="clip_resnet101"), input_size=(SIDE, SIDE), num_tokens=NUM_TOKENS)
    print(f"\n{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in a bf16 matrix product (measured)")
    print(f"{'training step, FCNet-R101, bf16':40}{'samples/s':>10}{'of peak':>9}{'hours of 50 epochs':>20}")
    for compiled in (False, True):
        for num_images, per_image in ((64, 1), (32, 7)):
            rate = training_rate(num_images, per_image, compiled=compiled)
            flop = 3 * 2 * cost.macs_per_expression(per_image)  # a backward pass costs two forward passes
            # An epoch visits each ref once.
            hours = TRAIN_REFS * EPOCHS / rate / 3600
            name = f"{'compiled' if compiled else 'eager'}, {num_images} images x {per_image}"
            print(f"{name:40}{rate:>10.0f}{rate * flop / peak:>9.0%}{hours:>20.1f}")
    print(f"FCNet's paper: {PAPER_HOURS} hours on {PAPER_CARDS} cards")


def matrix_peak() -> float:
    """Measure the FLOP per second of a large bf16 matrix product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(30):
        a @ b
    torch.cuda.synchronize()
    return 30 * 2 * 8192**3 / (time.perf_counter() - begin)


def training_rate(num_images: int, per_image: int, *, compiled: bool) -> float:
    """Measure the samples per second of training steps: forward pass, backward pass and Adam."""
    model: SegmentationModel = build_model(FCNetConfig(image_encoder="clip_resnet101"), input_size=(SIDE, SIDE))
    model = model.cuda().to(memory_format=torch.channels_last).train()
    trained: torch.nn.Module = CompiledModel(model, fixed_sentences=True) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    num = num_images * per_image
    images = torch.randn(num_images, 3, SIDE, SIDE, device="cuda").to(memory_format=torch.channels_last)
    token_ids = torch.randint(1, 49406, (num, NUM_TOKENS), device="cuda")
    token_mask = torch.ones_like(token_ids, dtype=torch.bool)
    image_index = torch.arange(num_images, device="cuda").repeat_interleave(per_image)
    masks = torch.randint(0, 2, (num, SIDE, SIDE), device="cuda", dtype=torch.uint8)
    is_pad, num_global = torch.zeros(num, dtype=torch.bool, device="cuda"), torch.tensor(num, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            output = trained(images, token_ids, token_mask, image_index)
        loss = training_loss(output, masks, LossWeights(), is_pad=is_pad, num_global=num_global, num_processes=1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        step()
    torch.cuda.synchronize()
    return 20 * num / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
