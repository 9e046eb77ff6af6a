"""Checks that a run's folder may be used. Locks the folder, so that only one run at a time writes to it."""

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refseg.errors import RefsegError, TrainingError, UsageError
from refseg.json_text import parse_json
from refseg.locks import lock
from refseg.training.checkpoint import list_checkpoints
from refseg.training.run_files import ENVIRONMENT_NAME, RECIPE_NAME

logger = logging.getLogger(__name__)

_LOCK_NAME = ".lock"
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder that this process may not write to."""
_BEFORE_THE_RECIPE = {_LOCK_NAME, f".{ENVIRONMENT_NAME}.part", f".{RECIPE_NAME}.part"}
"""Files that a run leaves behind if it is killed before it has written its recipe."""


def refuse_other_contents(out: Path) -> None:
    """Refuse a folder with other files, so that no checkpoints are mixed into it.

    An empty folder and the folder of a run are accepted. A run is recognised by its checkpoints or its recipe.

    Raises:
        UsageError: If `out` is a file, or a folder with other contents than a run.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out}: is a file, expected a folder for the run")
    ours = {*_BEFORE_THE_RECIPE, *([ENVIRONMENT_NAME] if _is_object(out / ENVIRONMENT_NAME, _ENVIRONMENT_KEYS) else [])}
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if others and not list_checkpoints(out) and not _is_object(out / RECIPE_NAME, _RECIPE_KEYS):
        raise UsageError(
            f"--out {out}: holds {others[0]}{f' and {len(others) - 1} more' if others[1:] else ''}, but not a run of "
            "refseg; expected a new or empty folder, or that of a run to resume"
        )


_RECIPE_KEYS = {"model", "data", "train"}
_ENVIRONMENT_KEYS = {"refseg", "packages", "dataset_digest"}


def _is_object(path: Path, keys: set[str]) -> bool:
    """Return True if a file is a JSON object with these keys."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and keys <= content.keys()


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Lock the folder against a second run, until this process ends.

    The lock ends for any kind of exit. If a run is refused before it has written anything, a newly made folder is
    removed. A read-only folder needs no lock, because a finished run writes nothing and any other run fails when it
    writes its first file.

    Raises:
        TrainingError: If another run uses the folder.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        opened = (out / _LOCK_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        yield
        return
    with opened as file:
        try:
            if not lock(file, wait=False):
                logger.warning("%s: this file system has no locks; do not start a second run in this folder", out)
        except BlockingIOError as error:
            file.seek(0)
            raise TrainingError(
                f"{out}: process {file.read().strip() or 'unknown'} is training into this folder; "
                "wait for it, end it, or choose another --out"
            ) from error
        with suppress(OSError):  # on a full disk the lock works, but does not name its holder
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()} on {platform.node()}\n".encode())
        try:
            yield
        except RefsegError:
            if is_new and [path.name for path in out.iterdir()] == [_LOCK_NAME]:
                with suppress(OSError):  # another process may have begun to use the folder
                    (out / _LOCK_NAME).unlink()
                    out.rmdir()
            raise
