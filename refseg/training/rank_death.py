"""One error for the death of another process of the run, however it shows."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from refseg.errors import RefsegError, TrainingError

_SIGNS = re.compile(r"gloo|nccl|peer|socket|broken pipe|store", re.IGNORECASE)
"""What the errors of torch's collectives have in common: gloo's are plain RuntimeErrors, NCCL's a kind of them."""


@contextmanager
def named_rank_death(num_processes: int) -> Iterator[None]:
    """Raise one error for what the death of another process makes of the collective that this one is in.

    The connections of a process that ends are cut at once, whatever ended it, and all others are in a collective with
    it at the latest at the end of their step.

    Args:
        num_processes: Of the run; 1: nothing is taken for such a death.

    Raises:
        TrainingError: If another process is gone.
    """
    try:
        yield
    except RefsegError:
        raise
    except RuntimeError as error:
        text = str(error).strip()
        if num_processes == 1 or not _SIGNS.search(text):
            raise
        raise TrainingError(
            f"another process of the run ended or cannot be reached ({text.splitlines()[0][:300]}); look for its own "
            "message or the system's (memory); the same command goes on from the newest checkpoint"
        ) from error
