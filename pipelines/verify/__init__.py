"""Checks a built dataset: descriptor, tars, manifests and their agreement, down to each pixel run and token."""

from pipelines.verify.dataset import verify_dataset
from refseg.dataset.faults import Fault

__all__ = ["Fault", "verify_dataset"]
