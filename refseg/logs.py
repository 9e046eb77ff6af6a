"""Where log lines go: handlers are set here and nowhere else, for the main process only."""

import logging
import sys

from tqdm.contrib.logging import _TqdmLoggingHandler

from refseg.wording import printable


class _PrintableFormatter(logging.Formatter):
    """Shows control characters that names in a message hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(*, verbose: bool = False, main_process: bool = True) -> None:
    """Send the log lines of `refseg` and `pipelines` to stderr, without tearing a progress bar.

    Args:
        verbose: Debug lines too.
        main_process: Other ranks and workers say warnings and errors only.
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
