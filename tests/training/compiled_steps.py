"""Runs steps of a compiled model and prints JSON; a separate program, because shape checks cannot be compiled."""

import json
import sys

import torch
from torch._dynamo.utils import counters

from refseg.model_config import MODEL_CONFIGS
from refseg.models import build_model
from refseg.training.step import CompiledModel


def batch(sentences_of: list[int]) -> tuple[torch.Tensor, ...]:
    index = torch.arange(len(sentences_of)).repeat_interleave(torch.tensor(sentences_of))
    ids = torch.randint(1, 49406, (len(index), 6))
    return torch.randn(len(sentences_of), 3, 64, 64), ids, torch.ones_like(ids, dtype=torch.bool), index


def steps(name: str, batches: list[list[int]], *, fixed_sentences: bool, backend: str = "eager") -> dict[str, object]:
    """Return the facts of a compilation; `eager` only traces, `aot_eager` also makes the graph of the gradients."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    settings = {"name": name, "image_encoder": "tiny", "dim": 32, "ffn_dim": 32, "num_heads": 4, "dropout": 0.0,
                "num_decoder_layers": 2}  # fmt: skip
    model = build_model(MODEL_CONFIGS[name].model_validate(settings), input_size=(64, 64))  # type: ignore[arg-type]
    compiled = CompiledModel(model, fixed_sentences=fixed_sentences, backend=backend)
    error = 0.0
    for sentences_of in batches:
        inputs = batch(sentences_of)
        found = compiled(*inputs).mask_logits
        found.sum().backward()
        error = max(error, float((found - model(*inputs).mask_logits).detach().abs().max()))
    return {"error": error, "graphs": counters["stats"]["unique_graphs"], "breaks": len(counters["graph_break"])}


if __name__ == "__main__":
    results = {name: steps(name, [[1, 2]] * 3, fixed_sentences=True) for name in MODEL_CONFIGS}
    varying = [[2, 2], [2, 3], [4, 2], [1, 2], [5, 4]]
    results["varying"] = steps("fcnet", varying, fixed_sentences=False, backend="aot_eager")
    json.dump(results, sys.stdout)
