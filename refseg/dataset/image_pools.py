"""Addresses of image pools: relative to a dataset's folder, on its own host or on one that the user allowed."""

import logging
import os
from pathlib import Path

from refseg.dataset.descriptor import ImagePool
from refseg.errors import DatasetError
from refseg.storage import Folder, is_remote, open_folder

logger = logging.getLogger(__name__)

HOSTS_VARIABLE = "REFSEG_ALLOW_HOSTS"
"""Environment variable: hosts on which image pools may lie besides the dataset's own, separated by spaces."""

_THIS_MACHINE = "file://"


def relative_address(folder: str, start: str) -> str:
    """A folder's path from another one; its absolute path or URL if they do not share a file system.

    If they are on different hosts, a warning says what readers have to allow.
    """
    if host_of(folder) != host_of(start):
        logger.warning(
            "%s: shows images that lie at %s, on another host; readers have to set %s=%s",
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
    """The path or URL of a pool of the dataset in `folder`: what `relative_address` was undone.

    A dataset may be untrusted, and a request reveals its reader to the host. Therefore a pool must lie where the
    dataset lies: on this machine or, for a URL, at the same scheme and host (or bucket). `REFSEG_ALLOW_HOSTS` names
    further ones.

    Raises:
        DatasetError: If it lies elsewhere and the user did not allow that.
    """
    if is_remote(pool.path) or Path(pool.path).is_absolute():
        address = pool.path
    else:
        # Relative to where the folder is, not to a link to it.
        address = open_folder(folder if is_remote(folder) else os.path.realpath(folder)).join(pool.path)
    host = host_of(address)
    if host != host_of(folder) and host not in os.environ.get(HOSTS_VARIABLE, "").split():
        raise DatasetError(
            f"{folder}: its images of {pool.dataset} lie at {address}, on another host than the dataset; if you trust "
            f"the dataset and that host, set {HOSTS_VARIABLE}={host} (several separated by spaces), or build the "
            "dataset again without --images-from"
        )
    return address


def open_pool(folder: Folder, pool: ImagePool) -> Folder:
    """The folder of an image pool of the dataset in `folder`.

    Raises:
        DatasetError: If it is on another host than the dataset, and the user did not allow that.
    """
    return open_folder(pool_address(pool, folder.address))


def pool_remedy(pool: ImagePool) -> str:
    """What to do about a tar of a pool that is not what it was."""
    return (
        f"put {pool.dataset} back at {pool.path} as it was built with digest {pool.digest:.12}, "
        "or build this dataset again"
    )


def host_of(address: str) -> str:
    """Scheme and host, or bucket, of a URL: `s3://bucket`; `file://` of what lies on this machine."""
    if not is_remote(address):
        return _THIS_MACHINE
    if "::" in address:
        return address  # a chain of file systems, each of which may make requests: nothing else is the same
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    return _THIS_MACHINE if scheme in ("file", "local") else f"{scheme}://{rest.split('/')[0]}"
