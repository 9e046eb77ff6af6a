"""Configures logging. No other module installs a handler, and only the main process logs below warnings."""

import logging
import sys

from tqdm.contrib.logging import _TqdmLoggingHandler

from refseg.wording import printable


class _PrintableFormatter(logging.Formatter):
    """Escapes control characters, which names of files in a message may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(*, verbose: bool = False, main_process: bool = True) -> None:
    """Send the log lines of `refseg` and `pipelines` to stderr, above a progress bar if there is one.

    Args:
        verbose: Log debug lines, too.
        main_process: True for the main process; other ranks and workers log only warnings and errors.
    """
    handler = _TqdmLoggingHandler()
    handler.stream = sys.stderr
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    level = logging.DEBUG if verbose else logging.INFO
    for name in ("refseg", "pipelines"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level if main_process else logging.WARNING)
