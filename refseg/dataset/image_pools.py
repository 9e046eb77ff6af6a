"""Addresses of image pools, relative to the dataset's folder, and the rule which hosts they may be on."""

import logging
import os
from pathlib import Path

from refseg.dataset.descriptor import ImagePool
from refseg.errors import DatasetError
from refseg.storage import Folder, is_remote, open_folder

logger = logging.getLogger(__name__)

HOSTS_VARIABLE = "REFSEG_ALLOW_HOSTS"
"""Environment variable: the hosts, besides the dataset's own, on which image pools may be; separated by spaces."""

_THIS_MACHINE = "file://"


def relative_address(folder: str, start: str) -> str:
    """Return the path of `folder` relative to `start`, or its absolute path or URL if they share no file system.

    If the two are on different hosts, a warning names the host that readers have to allow.
    """
    if host_of(folder) != host_of(start):
        logger.warning(
            "%s: uses images at %s, which is another host; readers have to set %s=%s",
            start, folder, HOSTS_VARIABLE, host_of(folder),
        )  # fmt: skip
    if is_remote(folder) or is_remote(start):
        scheme, _, path = folder.partition("://")
        other, _, base = start.partition("://")
        if is_remote(folder) and scheme == other and path.split("/")[0] == base.split("/")[0]:
            return os.path.relpath(path, base)
        return folder if is_remote(folder) else os.path.abspath(folder)  # noqa: PTH100 - links are kept
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(start))


def pool_address(pool: ImagePool, folder: str) -> str:
    """Return the path or URL of an image pool of the dataset in `folder`; the inverse of `relative_address`.

    A dataset may be untrusted, and a request reveals its reader to the host. Therefore a pool must be on the same host
    as the dataset: on this machine or, for a URL, at the same scheme and host (or bucket). The user allows other hosts
    with `REFSEG_ALLOW_HOSTS`.

    Raises:
        DatasetError: If the pool is on another host that the user did not allow.
    """
    if is_remote(pool.path) or Path(pool.path).is_absolute():
        address = pool.path
    else:
        # `folder` may be a symbolic link; the pool's path is relative to the folder it points to.
        address = open_folder(folder if is_remote(folder) else os.path.realpath(folder)).join(pool.path)
    host = host_of(address)
    if host != host_of(folder) and host not in os.environ.get(HOSTS_VARIABLE, "").split():
        raise DatasetError(
            f"{folder}: its images of {pool.dataset} are at {address}, on another host than the dataset; if you trust "
            f"the dataset and that host, set {HOSTS_VARIABLE}={host} (separate several by spaces), or build the "
            "dataset again without --images-from"
        )
    return address


def open_pool(folder: Folder, pool: ImagePool) -> Folder:
    """Return the folder of an image pool of the dataset in `folder`.

    Raises:
        DatasetError: If the pool is on another host that the user did not allow.
    """
    return open_folder(pool_address(pool, folder.address))


def pool_remedy(pool: ImagePool) -> str:
    """Return advice for the user when a tar file in an image pool is missing or has changed."""
    return f"restore {pool.dataset} with digest {pool.digest:.12} at {pool.path}, or build this dataset again"


def host_of(address: str) -> str:
    """Return the scheme and host (or bucket) of a URL, as in `s3://bucket`; `file://` for a path of this machine."""
    if not is_remote(address):
        return _THIS_MACHINE
    if "::" in address:
        return address  # a chain of file systems, each of which may make requests: only an equal chain is the same host
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    return _THIS_MACHINE if scheme in ("file", "local") else f"{scheme}://{rest.split('/')[0]}"
