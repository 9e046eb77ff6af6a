"""Referring image segmentation: annotations, shards, models, training, scores."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refseg.api import evaluate, load_dataset, load_model

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load_dataset", "load_model"]


def __getattr__(name: str) -> Any:
    # The import is lazy because `refseg.api` imports torch: `import refseg` and `refseg --help` stay quick.
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("refseg.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
