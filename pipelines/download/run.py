"""Downloads the annotations and images of datasets, after it has checked what is missing and the free disk space."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.download.catalogue import Catalogue, ImageGroup, load_catalogue
from pipelines.download.needed_images import ImagePlace, NeededImage, fetch_images, find_needed
from pipelines.download.pinned_file import fetch_file, is_complete, part_path
from pipelines.published import published_counts
from refseg.arguments import check_word
from refseg.dataset.schema import find_dataset
from refseg.errors import DownloadError, UsageError
from refseg.locks import lock

Images = Literal["none", "needed", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """The options of a download.

    Attributes:
        datasets: Dataset ids with their partitions, such as refcoco/unc or refcocog/umd.
        out: Folder for annotations and images; it is created if it does not exist.
        images: The images to download. needed: only the images that the datasets refer to. all: whole archives, which
            later commands read without unpacking. none: no images.
        mirror: URL or path of a folder with the same files, which is tried before the published addresses. It may be
            given several times.
        catalogue: TOML file to use instead of manifests/downloads.toml, in the same form.

    Raises:
        UsageError: If a value is not allowed.
    """

    datasets: tuple[str, ...]
    out: Path
    images: Images = "needed"
    mirror: tuple[str, ...] = ()
    catalogue: Path | None = None

    def __post_init__(self) -> None:
        check_word("--images", self.images, Images)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A file of a download plan.

    Attributes:
        name: Path of the file, relative to `DownloadOptions.out`.
        num_bytes: Size of the file in bytes; None if it is not known.
        sha256: SHA-256 of the file. Empty if it is not known; the user must then fetch the file by hand.
        source: Address that is tried first or, for a file to fetch by hand, where the user finds it.
        found_in: Description of the public sources that state the digest.
        held_bytes: Number of bytes that exist already, of the complete file or of an interrupted download.
    """

    name: str
    num_bytes: int | None
    sha256: str
    source: str
    found_in: str
    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """The files and images that a download would fetch, determined without network requests.

    Attributes:
        files: Annotation files and, if `images` is `all`, archives of images.
        num_images: Largest number of single images to fetch; images that exist already are counted.
        image_bytes: Approximate size of the single images in bytes.
        terms: Licences and terms of use of the files and images.
    """

    files: tuple[PlannedFile, ...]
    num_images: int
    image_bytes: int
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """The result of a download.

    Attributes:
        files: Names of the fetched files.
        num_images: Number of single images that were fetched.
        num_bytes: Total number of fetched bytes.
    """

    files: tuple[str, ...]
    num_images: int
    num_bytes: int


def plan_download(options: DownloadOptions) -> DownloadPlan:
    """List the files and images of some datasets, and what exists already, without network requests.

    Raises:
        UsageError: If a dataset is unknown, or the catalogue has mistakes.
    """
    catalogue = load_catalogue(options.catalogue)
    names, groups = _names(catalogue, options)
    num_images, image_bytes = 0, 0
    for group in groups if options.images == "needed" else ():
        datasets = [name for name in options.datasets if group in catalogue.find(name).images]
        counts = [published_counts(find_dataset(name).dataset_id) for name in datasets]
        images = sum(split.images or 0 for splits in counts for split in splits.values())
        images = min(images, catalogue.images[group].num_images or images)
        num_images += images
        image_bytes += int(images * _mean_bytes(catalogue, catalogue.images[group]))
    archives = [catalogue.images[group].archive for group in groups] if options.images != "none" else []
    return DownloadPlan(
        files=tuple(
            PlannedFile(
                name=name,
                num_bytes=(pin := catalogue.files[name]).num_bytes,
                sha256=pin.sha256,
                source=pin.by_hand or _addresses(name, pin.mirrors, options)[0],
                found_in=pin.found_in,
                held_bytes=_held_bytes(options.out / name),
            )
            for name in names
        ),
        num_images=num_images,
        image_bytes=image_bytes,
        terms=catalogue.terms_of([*names, *archives]),
    )


def download(options: DownloadOptions, *, progress: Callable[[int, int], None] | None = None) -> DownloadReport:
    """Download the missing files of some datasets. After an interruption, the same call completes the download.

    Args:
        options: Options of the download.
        progress: Called with (received bytes, all bytes) when bytes arrive. Other threads call it, too.

    Raises:
        UsageError: If a dataset is unknown, or the catalogue has mistakes.
        DownloadError: If a file to fetch by hand is missing, the disk is too full, no mirror has a file, or another
            download uses the folder.
        AnnotationError: If annotations, which name the images, cannot be read.
        OSError: If the folder cannot be written.
    """
    catalogue = load_catalogue(options.catalogue)
    names, groups = _names(catalogue, options)
    _refuse_by_hand(catalogue, names, groups, options)
    options.out.mkdir(parents=True, exist_ok=True)
    with _sole_download(options.out):
        missing = [name for name in names if _is_missing(catalogue, name, options.out)]
        held = {name: _held_bytes(part_path(options.out / name)) for name in missing}
        meter = _Meter(progress)
        meter.expect(sum(catalogue.files[name].num_bytes or 0 for name in missing), there=sum(held.values()))
        _check_space(options.out, sum((catalogue.files[name].num_bytes or 0) - held[name] for name in missing))
        for name in missing:
            pin = catalogue.files[name]
            fetch_file(pin, options.out / name, _addresses(name, pin.mirrors, options), meter.add)
        num_images = 0
        if options.images == "needed" and groups:
            num_images = _download_images(catalogue, groups, options, meter)
    return DownloadReport(files=tuple(missing), num_images=num_images, num_bytes=meter.num_fetched)


def _names(catalogue: Catalogue, options: DownloadOptions) -> tuple[list[str], list[str]]:
    """Return the names of the files to fetch and of the image groups, without repetitions."""
    if not options.datasets:
        raise UsageError(f"found no dataset, expected one or more of {', '.join(catalogue.datasets)}")
    needs = [catalogue.find(name) for name in options.datasets]
    names = [name for need in needs for name in need.annotations]
    groups = list(dict.fromkeys(name for need in needs for name in need.images))
    if options.images == "all":
        names += [catalogue.images[group].archive for group in groups]
    return list(dict.fromkeys(names)), groups


def _refuse_by_hand(catalogue: Catalogue, names: list[str], groups: list[str], options: DownloadOptions) -> None:
    """Raise an error that lists missing files without a known digest, before anything is downloaded."""
    wanted = dict.fromkeys(names)
    if options.images == "needed":  # single images are read only from archives that can be recognised
        archives = (catalogue.images[group].archive for group in groups)
        wanted |= dict.fromkeys(name for name in archives if catalogue.files[name].by_hand)
    lines = [
        f"  {options.out / name}: from {catalogue.files[name].by_hand}"
        for name in wanted
        if catalogue.files[name].by_hand and not _is_there(options.out, name)
    ]
    if lines:
        raise DownloadError(
            "no digest is known of some files, so what a server sends could not be checked; put them there by hand "
            "and run the same command again, or leave their dataset out\n" + "\n".join(lines)
        )


def _is_there(out: Path, name: str) -> bool:
    """Return True if a file exists or, for an archive, the folder to which it was unpacked."""
    return (out / name).exists() or (name.endswith(".zip") and (out / name.removesuffix(".zip")).is_dir())


def _is_missing(catalogue: Catalogue, name: str, out: Path) -> bool:
    pin = catalogue.files[name]
    return not pin.by_hand and not is_complete(pin, out / name)


def _download_images(catalogue: Catalogue, groups: list[str], options: DownloadOptions, meter: "_Meter") -> int:
    specs = [spec for name in options.datasets if (spec := find_dataset(name)).is_coco]
    by_group: dict[str, list[NeededImage]] = {}
    for image in find_needed(specs, options.out):
        # COCO's file names contain the name of the group. All other datasets have a single group.
        group = next((name for name in groups if f"_{name}_" in image.name), groups[0])
        by_group.setdefault(group, []).append(image)
    means = {name: _mean_bytes(catalogue, catalogue.images[name]) for name in by_group}
    num_bytes = int(sum(len(images) * means[name] for name, images in by_group.items()))
    meter.expect(num_bytes)
    _check_space(options.out, num_bytes)
    for name, images in by_group.items():
        places = _image_places(catalogue, name, options)
        fetch_images(images, options.out / name, places, meter.add)
    return sum(map(len, by_group.values()))


def _image_places(catalogue: Catalogue, name: str, options: DownloadOptions) -> list[ImagePlace]:
    """Return the places of a group's images: the user's mirrors first, and archives before folders of single files.

    The size of an archive is known, whereas single files cannot be compared with anything.
    """
    group = catalogue.images[name]
    pin = catalogue.files[group.archive]
    archives = [ImagePlace(one, name, pin.num_bytes or 0) for one in _addresses(group.archive, pin.mirrors, options)]
    folders = [ImagePlace(one) for one in _addresses(name, group.singles, options)]
    num_own = len(options.mirror)
    return [*archives[:num_own], *folders[:num_own], *archives[num_own:], *folders[num_own:]]


def _addresses(name: str, mirrors: tuple[str, ...], options: DownloadOptions) -> list[str]:
    """Return the addresses of a file: in the user's mirrors first, and then the published ones."""
    return [*(f"{address.rstrip('/')}/{name}" for address in options.mirror), *mirrors]


def _mean_bytes(catalogue: Catalogue, group: ImageGroup) -> float:
    archive_bytes = catalogue.files[group.archive].num_bytes
    return archive_bytes / group.num_images if archive_bytes and group.num_images else 0.0


def _held_bytes(path: Path) -> int:
    return next((place.stat().st_size for place in (path, part_path(path)) if place.exists()), 0)


def _check_space(out: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < num_bytes:
        raise DownloadError(
            f"{out}: {num_bytes / 1e9:.1f} GB are to be downloaded and {free / 1e9:.1f} GB are free; free some disk "
            "space or give another --out"
        )


@contextmanager
def _sole_download(out: Path) -> Iterator[None]:
    """Lock the folder for this process. On file systems without locks this has no effect."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        lock(descriptor, wait=False)
        yield
    except BlockingIOError as error:
        raise DownloadError(f"{out}: another download is at work here; wait for it, or give another --out") from error
    finally:
        os.close(descriptor)


class _Meter:
    """Counts the bytes that several threads receive."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.num_fetched = 0
        self._there = 0
        self._in_all = 0
        self._progress = progress
        self._lock = threading.Lock()

    def expect(self, num_bytes: int, *, there: int = 0) -> None:
        """Add to the number of expected bytes; `there` of them exist already."""
        self._in_all += num_bytes
        self._there += there

    def add(self, num_bytes: int) -> None:
        """Count received bytes. A negative number means that bytes were discarded."""
        with self._lock:
            self.num_fetched += max(0, num_bytes)
            self._there += num_bytes
            if self._progress is not None:
                self._progress(self._there, max(self._in_all, self._there))
