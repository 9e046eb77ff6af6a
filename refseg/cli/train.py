"""`refseg train`: trains from a recipe in one process, or in several with `accelerate launch -m refseg train`."""

import argparse

from refseg import train

EXAMPLE = """refseg train toy --out runs/toy
  accelerate launch --multi_gpu --num_processes 8 -m refseg train fcnet-refcoco-r101 --out runs/refcoco \\
      --set train.precision=bf16 data.root=/data/refcoco-unc"""
add_arguments = train.add_arguments


def run(args: argparse.Namespace) -> int:
    train.exit_at_sigterm()
    return train.run(args)
