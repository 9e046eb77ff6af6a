"""The progress bar of commands that work for long."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(unit: str, description: str | None = None) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on standard error while a command works.

    Args:
        unit: Behind the rate, for example `" images"`.
        description: Before the bar.

    Yields:
        A function to be called with (done, in all); None where standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit=unit, desc=description, leave=False) as bar:

        def show(done: int, in_all: int) -> None:
            bar.total = in_all
            bar.update(done - bar.n)

        yield show
