"""From names of datasets to their files: what is missing, free disk space, annotations, images."""

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
    """What to download.

    Attributes:
        datasets: Dataset ids with their partitions: refcoco/unc, refcocog/umd, and so on.
        out: Folder for the archives of annotations and the images; made if it is not there.
        images: needed: those that the datasets refer to, out of the remote archive or one by one; all: whole archives,
            which are read as they are; none: annotations alone.
        mirror: URL or path of a folder with the same files, which is tried first; may be given several times.
        catalogue: TOML file of the form of manifests/downloads.toml, to be used in its place.

    Raises:
        UsageError: If a value is not one of those allowed.
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
    """A file that a download needs.

    Attributes:
        name: Below the folder.
        num_bytes: Its size; None if it is not known.
        sha256: Its digest; empty if none is known, so that it is fetched by hand.
        source: Where it comes from first.
        found_in: How many public sources state the digest.
        held_bytes: What is there of it, complete or from a download that was interrupted.
    """

    name: str
    num_bytes: int | None
    sha256: str
    source: str
    found_in: str
    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """What a download would do, without a request.

    Attributes:
        files: Annotations, and with `images` `all` archives of images.
        num_images: Largest number of images that are fetched one by one or out of archives.
        image_bytes: About how many bytes these have.
        terms: Licences and terms of all of it.
    """

    files: tuple[PlannedFile, ...]
    num_images: int
    image_bytes: int
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """What was done.

    Attributes:
        files: Names of the files that were fetched.
        num_images: Images that were fetched.
        num_bytes: Bytes that were fetched in all.
    """

    files: tuple[str, ...]
    num_images: int
    num_bytes: int


def plan_download(options: DownloadOptions) -> DownloadPlan:
    """Look up what some datasets need and what is there of it; makes no request.

    Raises:
        UsageError: If a dataset is not known, or the catalogue has mistakes.
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
    """Download what some datasets need and is not there yet; killed at any moment, the same call completes it.

    Args:
        options: See there.
        progress: Called with (bytes there, bytes in all) as bytes arrive, also by other threads.

    Raises:
        UsageError: If a dataset is not known, or the catalogue has mistakes.
        DownloadError: If a file of which no digest is known is not there; if the disk has not enough space; if no
            mirror gives a file; or if another download is at work in the folder.
        AnnotationError: If annotations cannot be read for the images they need.
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
    """Files that are fetched whole, and groups of images, each once."""
    if not options.datasets:
        raise UsageError(f"found no dataset, expected one or more of {', '.join(catalogue.datasets)}")
    needs = [catalogue.find(name) for name in options.datasets]
    names = [name for need in needs for name in need.annotations]
    groups = list(dict.fromkeys(name for need in needs for name in need.images))
    if options.images == "all":
        names += [catalogue.images[group].archive for group in groups]
    return list(dict.fromkeys(names)), groups


def _refuse_by_hand(catalogue: Catalogue, names: list[str], groups: list[str], options: DownloadOptions) -> None:
    """Name files of which no digest is known and which are not there, before anything is downloaded."""
    wanted = dict.fromkeys(names)
    if options.images == "needed":  # images are not taken out of an archive that cannot be recognised
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
    """True if a file fetched by hand is there, or an archive's folder."""
    return (out / name).exists() or (name.endswith(".zip") and (out / name.removesuffix(".zip")).is_dir())


def _is_missing(catalogue: Catalogue, name: str, out: Path) -> bool:
    pin = catalogue.files[name]
    return not pin.by_hand and not is_complete(pin, out / name)


def _download_images(catalogue: Catalogue, groups: list[str], options: DownloadOptions, meter: "_Meter") -> int:
    specs = [spec for name in options.datasets if (spec := find_dataset(name)).is_coco]
    by_group: dict[str, list[NeededImage]] = {}
    for image in find_needed(specs, options.out):
        # COCO's names hold the group; of others there is one.
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
    """Archives before single files, whose bytes nothing can be compared with; a user's own mirrors before all."""
    group = catalogue.images[name]
    pin = catalogue.files[group.archive]
    archives = [ImagePlace(one, name, pin.num_bytes or 0) for one in _addresses(group.archive, pin.mirrors, options)]
    folders = [ImagePlace(one) for one in _addresses(name, group.singles, options)]
    num_own = len(options.mirror)
    return [*archives[:num_own], *folders[:num_own], *archives[num_own:], *folders[num_own:]]


def _addresses(name: str, mirrors: tuple[str, ...], options: DownloadOptions) -> list[str]:
    """Where a file is looked for: in the user's own mirrors by its name, then where it was published."""
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
    """Hold the folder for this process; file systems without locks hold nothing."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        lock(descriptor, wait=False)
        yield
    except BlockingIOError as error:
        raise DownloadError(f"{out}: another download is at work here; wait for it, or give another --out") from error
    finally:
        os.close(descriptor)


class _Meter:
    """Counts bytes as threads fetch them."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.num_fetched = 0
        self._there = 0
        self._in_all = 0
        self._progress = progress
        self._lock = threading.Lock()

    def expect(self, num_bytes: int, *, there: int = 0) -> None:
        """More is to come, of which a part is there from before."""
        self._in_all += num_bytes
        self._there += there

    def add(self, num_bytes: int) -> None:
        """Bytes arrived, or, less than 0, were given up."""
        with self._lock:
            self.num_fetched += max(0, num_bytes)
            self._there += num_bytes
            if self._progress is not None:
                self._progress(self._there, max(self._in_all, self._there))
