"""Which files there are, here and in image pools, and whether their sizes are the descriptor's."""

from collections.abc import Iterator

from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor
from refseg.dataset.faults import Fault
from refseg.dataset.file_checks import find_file_faults, find_pool_faults, open_pool
from refseg.errors import DatasetError
from refseg.storage import Folder


def check_files(folder: Folder, descriptor: Descriptor) -> Iterator[Fault]:
    """Every file that must be there but the rejects, with its size, and no other tar or Parquet file."""
    yield from find_file_faults(folder.list(descriptor.file_names), descriptor, descriptor.shards)
    for pool in descriptor.image_pools:
        try:
            sizes = open_pool(folder, pool).list([tar.name for tar in pool.tars])
        except DatasetError as error:
            wrong, _, remedy = str(error).removeprefix(f"{folder}: ").rpartition("; ")
            own_host = "image pools on the dataset's own host"
            yield Fault(file=DESCRIPTOR_NAME, found=wrong, expected=own_host, remedy=remedy)
            continue
        yield from find_pool_faults(sizes, pool, pool.tars)
