"""Sends requests to remote storage, repeats them after passing failures, and turns final failures into `StorageError`.

Every fsspec file system raises errors of its own, from libraries that need not be installed here. This module
therefore keeps no list of them: any error of a request becomes a `StorageError` that names the URL and what to do.
"""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, TypeVar

from refseg.errors import RefsegError, StorageError, UsageError
from refseg.wording import did_you_mean

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_TRIES = 5
"""Number of tries of a request before its failure becomes an error."""
MAX_SECONDS = 120.0
"""Time after the first try in seconds, after which no further try starts."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 20.0
_REFUSALS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, RefsegError)
_FINAL = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"})
"""Names of botocore's errors that would be the same on every try."""
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_EXTRAS = {"s3": "refseg[s3]", "s3a": "refseg[s3]", "gs": "gcsfs", "gcs": "gcsfs", "hf": "refseg[hf]"}
"""The package to install for a protocol; for other protocols, fsspec's own message names the package."""


def ask(what: str, address: str, call: Callable[[], T]) -> T:
    """Send a request and repeat it after passing failures; a final failure names the address and what to do.

    Args:
        what: What the request does, for messages: `reading`, `writing`, `listing` or `removing`.
        address: URL that is read or written, for messages.
        call: Function that sends the request once and returns its result.

    Raises:
        FileNotFoundError: If storage answers that the file does not exist; this is not tried again.
        UsageError: If the URL's protocol is unknown or its package is not installed.
        StorageError: If storage refuses the request, which is not tried again, or if every try fails.
    """
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        stop=tenacity.stop_after_attempt(MAX_TRIES) | tenacity.stop_after_delay(MAX_SECONDS),
        wait=tenacity.wait_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS)
        + tenacity.wait_random(0, _FIRST_PAUSE_SECONDS),
        before_sleep=lambda state: logger.warning(
            "%s: %s failed (%s); trying again",
            address,
            what,
            state.outcome and _describe(state.outcome.exception()),
        ),
        reraise=True,
    )
    begin = time.monotonic()
    try:
        return retrying(call)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from error
    except RefsegError:
        raise
    except ImportError as error:
        raise _missing_package(address, error) from error
    except Exception as error:
        if not _may_pass(error):
            remedy = "check the address, the credentials and what they permit, then run the same command again"
            number = errno.EACCES if http_status(error) == HTTPStatus.FORBIDDEN else _number(error)
            raise StorageError(number, f"{what} is refused ({_describe(error)}); {remedy}", address) from error
        tries, seconds = retrying.statistics["attempt_number"], time.monotonic() - begin
        raise StorageError(
            _number(error),
            f"{what} failed {tries} times in {seconds:.0f} s, the last time with {_describe(error)}; "
            "check the network and the server, then run the same command again to resume",
            address,
        ) from error


def open_file_system(address: str) -> tuple[Any, str]:
    """Return this process's file system for a URL, and the path in it; fsspec reuses one file system per URL.

    Raises:
        UsageError: If the URL's protocol is unknown or its package is not installed.
        Exception: Any error of a file system that connects to its server when it is created.
    """
    import fsspec

    scheme = address.partition("://")[0]
    if scheme not in fsspec.available_protocols() and scheme not in fsspec.registry:
        hint = did_you_mean(scheme, fsspec.available_protocols())
        raise UsageError(
            f"{address}: found the unknown protocol {scheme}{hint}; expected a path or a URL such as s3://bucket/folder"
        )
    try:
        # Listings are not cached, because another process may have written in the meantime. The Hub's file system
        # caches them nevertheless, so `RemoteFolder` invalidates them.
        files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise _missing_package(address, error) from error
    if hasattr(files, "retries"):
        files.retries = 1  # s3fs and gcsfs repeat requests themselves, which would multiply with the tries made here
    return files, str(root)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any library carries; None if it carries none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return int(value)
    return None


def _missing_package(address: str, error: ImportError) -> UsageError:
    scheme = address.partition("://")[0]
    package = _EXTRAS.get(scheme)
    remedy = f"install it with: pip install '{package}'" if package else "install it, then run the same command again"
    return UsageError(f"{address}: {scheme}:// needs a package that is not installed ({error}); {remedy}")


def _may_pass(error: BaseException) -> bool:
    """Return True for a failure that may not occur on another try.

    An error of a backend's own library may be caused by the network. Errors of Python's standard library other than
    `OSError` (`ValueError`, `NotImplementedError`, `zipfile.BadZipFile`) would occur again.
    """
    if isinstance(error, _REFUSALS) or type(error).__name__ in _FINAL or not isinstance(error, Exception):
        return False
    if (status := http_status(error)) is not None:
        return status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | HTTPException) or library not in sys.stdlib_module_names


def _number(error: Exception) -> int:
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number else errno.EIO


def _describe(error: BaseException | None) -> str:
    words = " ".join(str(error).split())  # some messages of botocore have several lines
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
