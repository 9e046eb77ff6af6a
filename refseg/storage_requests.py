"""Requests to remote storage: made again where a failure may pass, and each backend's failure turned into ours.

Every fsspec file system has errors of its own, of libraries that need not be installed here. No list of them is kept:
whatever a request raises becomes a `StorageError` that names the place and what to do.
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
"""So often a request to remote storage is made before its failure is an error."""
MAX_SECONDS = 120.0
"""No further try is begun this long after the first."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 20.0
_REFUSALS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, RefsegError)
_FINAL = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"})
"""Names of botocore's errors that no other try can change."""
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_EXTRAS = {"s3": "refseg[s3]", "s3a": "refseg[s3]", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
"""What to install for a protocol; of others, fsspec's own message names it."""


def ask(what: str, address: str, call: Callable[[], T]) -> T:
    """Make a request, again after passing failures, and name place and remedy where it fails.

    Args:
        what: `reading`, `writing`, `listing` or `removing`, for messages.
        address: What is read or written, for messages.
        call: Makes the request.

    Raises:
        FileNotFoundError: If storage says so, at once.
        UsageError: If the URL's protocol is unknown or its package is not installed.
        StorageError: If storage refuses (at once) or fails (after the last try), whatever the backend raised.
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
            "check the network and the server, then run the same command again to go on",
            address,
        ) from error


def open_file_system(address: str) -> tuple[Any, str]:
    """This process's file system for a URL, and the path in it; fsspec keeps and gives the same one again.

    Raises:
        UsageError: If the URL's protocol is unknown or its package is not installed.
        Exception: Whatever the file system raises that connects as it is made.
    """
    import fsspec

    scheme = address.partition("://")[0]
    if scheme not in fsspec.available_protocols() and scheme not in fsspec.registry:
        hint = did_you_mean(scheme, fsspec.available_protocols())
        raise UsageError(
            f"{address}: Protocol not known: {scheme}{hint}; expected a path or a URL such as s3://bucket/folder"
        )
    try:
        # Listings are asked anew each time: another process may have written since.
        files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise _missing_package(address, error) from error
    if hasattr(files, "retries"):
        files.retries = 1  # s3fs's and gcsfs's own loop around each request: ours is around it, and they would multiply
    return files, str(root)


def http_status(error: BaseException) -> int | None:
    """The status of an HTTP answer that an error was made of, as different libraries tell it; None if there is none."""
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
    """True for a failure that another try may not meet.

    An error of a backend's own library may be one of the network. Python's own that are none of the operating system's
    (`ValueError`, `NotImplementedError`, `zipfile.BadZipFile`) will come again.
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
    words = " ".join(str(error).split())  # botocore writes some over several lines
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
