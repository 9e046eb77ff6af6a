"""Compares the loader with its limit and with other loaders: samples per second and per CPU-second, ratios.

    python benchmarks/loader.py [--images 1200] [--shared FOLDER] [--rounds 3] [--seconds 3] [--work FOLDER]

The corpus repeats real COCO pictures with their annotations and RefCOCO's sentences, in RefCOCO's proportions. They are
taken from FOLDER (default: shared/data beside the sources, or REFSEG_SHARED_DATA), or else from the bundled sample. Six
of seven pictures are in the training split, with about 7 sentences each. Every loader gives batches of 32: images
stretched to 480 x 480, targets of that size, and 17 token ids. Images are uint8, or normalised floats where a peer's
own code makes those.

- limit: only decodes and resizes, from JPEG bytes in memory, the same images that refseg reads with k = 1.
- refseg: k sentences share a decoded image; with k = 1 each sentence has its own. Peers decode one image for each, too.
- peers: `loader_peers.py` says how each is used. Peers that are not installed (extra `peers`) are skipped and listed.

Each loader runs with 1 and with 2 workers, in a new process, in interleaved rounds; medians are printed. Time counts
from when each worker has given a batch. CPU seconds include all processes and threads of a loader and its consumer.
"""

import argparse
import ctypes
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import loader_peers as peers
import loader_stores as stores
import numpy as np
import psutil
import torch
from corpus import DATASET, copy_images, find_material, write_annotations
from loader_peers import BATCH, SIDE, Arrays
from torch import Tensor

from pipelines.build import BuildOptions, build_dataset
from refseg.data.decode import decode_rgb
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.order import BatchPlan, EpochOrder
from refseg.data.transforms import Geometry
from refseg.reading import Reading

WORKERS = (1, 2)
CACHE_GIGABYTES = 8.0
AS_THE_NETWORK: dict[str, Any] = {
    "geometry": "stretch", "input_size": (SIDE, SIDE), "num_tokens": stores.TOKENS,
}  # fmt: skip
GEOMETRY = Geometry(kind="stretch", size=(SIDE, SIDE))
FFMPEG_VERSIONS = range(56, 62)
"""Versions of libavutil that SPDL can use: FFmpeg 4 to 9."""
_LONGEST = 120.0
"""Time in seconds after which a case is stopped, because it hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One loader to measure.

    Attributes:
        name: Description in words.
        open: Function of the stores' folder and the number of workers that returns an endless iterator of batches.
        needs: Modules, and shared libraries as `lib<name>`, that must be installed.
        write: Function that writes its store; None: it needs none.
        aim: Factor by which refseg with k = 1 should be faster per CPU-second, with 2 workers.
    """

    name: str
    open: Callable[[Path, int], Iterator[Arrays]]
    needs: tuple[str, ...] = ()
    write: Callable[[list[stores.Ref], Path], None] | None = None
    aim: float | None = None

    @property
    def missing(self) -> list[str]:
        """Needed modules and libraries that are not installed."""
        return [name for name in self.needs if not (_is_loadable if name.startswith("lib") else find_spec)(name)]


def _is_loadable(library: str) -> bool:
    for version in FFMPEG_VERSIONS:
        try:
            ctypes.CDLL(f"{library}.so.{version}")
        except OSError:
            continue
        return True
    return False


def limit(store: Path, num_workers: int) -> Iterator[Arrays]:
    """Decode and resize only, by threads, into a ring of buffers that are not overwritten while a batch is read."""
    index = ManifestIndex.open(store / "dataset", ["train"])
    encoded = [np.frombuffer(bytearray(index.read_image_bytes(image)), np.uint8) for image in range(index.num_images)]
    order = EpochOrder(index, Reading(sampling="sentence", global_batch=BATCH), epoch=0)
    ring = [torch.empty(BATCH, SIDE, SIDE, 3, dtype=torch.uint8) for _ in range(2 * num_workers + 2)]
    masks, ids = torch.zeros(BATCH, SIDE, SIDE, dtype=torch.uint8), torch.zeros(BATCH, stores.TOKENS, dtype=torch.int64)

    def work(plan: BatchPlan, out: Tensor) -> Tensor:
        for slot, image in zip(out, dict.fromkeys(index.row_image[plan.row_index].tolist()), strict=False):
            GEOMETRY.apply_image(decode_rgb(encoded[image]), out=slot)  # `fromkeys` dropped repeated pictures
        return out.permute(0, 3, 1, 2)

    with ThreadPoolExecutor(num_workers) as pool:
        at_work: deque[Future[Tensor]] = deque()
        for number in itertools.count():
            plan = order.plan(number % order.num_steps, rank=0, world_size=1)
            at_work.append(pool.submit(work, plan, ring[number % len(ring)]))
            if len(at_work) > 2 * num_workers:
                yield at_work.popleft().result(), masks, ids


def ours(store: Path, num_workers: int, *, dataset: str = "dataset", **options: Any) -> Iterator[Arrays]:
    index = ManifestIndex.open(store / dataset, ["train"])
    chosen = {"sampling": "sentence", "global_batch": BATCH, "num_workers": num_workers, **AS_THE_NETWORK, **options}
    loader = RefLoader(index, Reading(**chosen))
    while True:
        for batch in loader:
            yield batch.images, batch.masks, batch.token_ids
        loader.set_epoch(loader.epoch + 1)


def fill_cache(store: Path) -> None:
    index = ManifestIndex.open(store / "dataset", ["train"])
    reading = Reading(
        sampling="images", global_batch=BATCH, shuffle=False, remainder="pad", num_workers=2,
        cache_gigabytes=CACHE_GIGABYTES, **AS_THE_NETWORK,
    )  # fmt: skip
    for _ in RefLoader(index, reading):
        pass


LIMIT, K_1, K_ALL, CACHED = "limit: decode + resize", "refseg, k = 1", "refseg, k = all", "refseg, k = 1, warm cache"
STORED = "refseg, k = 1, stored at 480 x 480"
CASES = (
    Case(name=LIMIT, open=limit),
    Case(name=K_1, open=ours),
    Case(name="refseg, k = 1, processes", open=partial(ours, worker_kind="processes")),
    # These numbers of pictures give about a batch of sentences.
    Case(name="refseg, k = 4", open=partial(ours, sampling="images", expressions_per_image=4, global_batch=8)),
    Case(name=K_ALL, open=partial(ours, sampling="images", expressions_per_image="all", global_batch=5)),
    Case(name=CACHED, open=partial(ours, cache_gigabytes=CACHE_GIGABYTES)),
    Case(name=STORED, open=partial(ours, dataset="stored")),
    Case(
        name="refseg, k = 1, warm cache, processes",
        open=partial(ours, cache_gigabytes=CACHE_GIGABYTES, worker_kind="processes"),
    ),
    Case(name="file per image, LAVT's way", open=peers.file_per_image, needs=("open_clip",), aim=5.0),
    Case(
        name="LMDB and cv2, CRIS's way",
        open=peers.lmdb_cv2,
        needs=("lmdb", "cv2", "open_clip"),
        write=stores.write_lmdb,
        aim=5.0,
    ),
    Case(
        name="webdataset, as documented",
        open=peers.webdataset_plain,
        needs=("webdataset",),
        write=stores.write_webdataset,
        aim=6.0,
    ),
    Case(name="webdataset, the best we can", open=peers.webdataset_best, needs=("webdataset",), aim=2.2),
    Case(name="LitData", open=peers.litdata, needs=("litdata",), write=stores.write_litdata, aim=4.0),
    Case(name="MosaicML streaming", open=peers.mosaicml, needs=("streaming",), write=stores.write_mosaicml, aim=4.0),
    Case(name="SPDL", open=peers.spdl, needs=("spdl", "libavutil"), aim=2.0),
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Samples per second and per CPU-second, and the type of the images."""

    per_second: float
    per_cpu_second: float
    dtype: str


def measure(case: Case, store: Path, num_workers: int, seconds: float) -> Rates:
    """Run a loader in this process, which does nothing else."""
    torch.set_num_threads(1)
    batches = case.open(store, num_workers)
    for _ in range(num_workers):
        images, masks, token_ids = next(batches)
    num_samples = len(token_ids)
    assert images.shape[1:] == (3, SIDE, SIDE), images.shape
    assert masks.shape == (num_samples, SIDE, SIDE), masks.shape
    assert token_ids.shape == (num_samples, stores.TOKENS), token_ids.shape
    dtype = str(images.dtype).removeprefix("torch.")
    del images, masks, token_ids  # a batch that is kept is memory that the loader cannot reuse
    num_samples, cpu, start = 0, cpu_seconds(), time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(
            num_workers
        ):  # one batch from each worker, so that start and end have as many unfinished batches
            num_samples += len(next(batches)[2])
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return Rates(num_samples / wall, num_samples / cpu, dtype)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all its child processes, running or ended."""
    own = os.times()
    living = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(own[:4]) + sum(times.user + times.system for times in living)


def _child(number: int, store: Path, num_workers: int, seconds: float, answer: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)  # the default of torch's loader for workers on Linux
    answer.send(measure(CASES[number], store, num_workers, seconds))


def measure_apart(number: int, store: Path, num_workers: int, seconds: float) -> Rates | None:
    """Run a loader in a process of its own; return None if it failed, with its message on standard error."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(number, store, num_workers, seconds, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(_LONGEST) else None
    except EOFError:
        return None
    finally:
        process.join(10)
        if process.is_alive():  # a peer's own threads may keep it from ending
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.join()
        receiver.close()


def prepare(args: argparse.Namespace, work: Path, cases: list[int]) -> None:
    """Write the corpus, build the dataset, and write the stores of the chosen loaders."""
    material = find_material(args.shared)
    images = copy_images(material, work / "corpus", args.images)
    write_annotations(material, work / "corpus", args.images)
    build_dataset(
        BuildOptions(
            dataset=DATASET, annotations=work / "corpus", images=images, out=work / "dataset", check_images="header"
        )
    )
    if any(CASES[number].name == STORED for number in cases):
        build_dataset(
            BuildOptions(
                dataset=DATASET,
                annotations=work / "corpus",
                images=images,
                out=work / "stored",
                store=f"stretch:{SIDE}",
            )
        )
    index = ManifestIndex.open(work / "dataset", ["train"])
    print(
        f"{index.num_images:,} images of {index.image_bytes.mean() / 1000:.0f} KB, {index.num_rows:,} refs, "
        f"{index.num_sentences:,} sentences in the training split: {material.name}, repeated. Batches of {BATCH}, "
        f"{SIDE} x {SIDE}, median of {args.rounds} interleaved rounds of {args.seconds:g} s.",
        flush=True,
    )
    refs = stores.read_refs(work / "corpus", images)
    stores.save_refs(refs, work)
    for write in {CASES[number].write: None for number in cases}:
        if write is not None:
            write(refs, work)
    if any("cache" in CASES[number].name for number in cases):
        fill_cache(work)


def print_table(found: dict[tuple[int, int], list[Rates]], cases: list[int]) -> None:
    def median(number: int, num_workers: int, field: str) -> float:
        return statistics.median(getattr(rates, field) for rates in found[number, num_workers])

    per_cpu = {
        CASES[number].name: median(number, WORKERS[-1], "per_cpu_second")
        for number in cases
        if all(found[number, num_workers] for num_workers in WORKERS)
    }
    heads = "".join(f"{f'{number}w /s':>9}{f'{number}w /CPU-s':>11}" for number in WORKERS)
    print(f"\n{'':38}{'images':>8}{heads}{'of limit':>10}{'k = 1 / it':>12}")
    for number in cases:
        case = CASES[number]
        if case.missing:
            print(f"{case.name:38}  not installed: {', '.join(case.missing)}")
        elif case.name not in per_cpu:
            print(f"{case.name:38}  failed, see standard error")
        else:
            rates = "".join(
                f"{median(number, workers, 'per_second'):>9,.0f}{median(number, workers, 'per_cpu_second'):>11,.0f}"
                for workers in WORKERS
            )
            ratios = [
                f"{per_cpu[case.name] / per_cpu[LIMIT]:.2f}" if LIMIT in per_cpu else "",
                f"{per_cpu[K_1] / per_cpu[case.name]:.2f}" if K_1 in per_cpu else "",
            ]
            print(f"{case.name:38}{found[number, WORKERS[0]][0].dtype:>8}{rates}{ratios[0]:>10}{ratios[1]:>12}")
    if K_1 in per_cpu:
        print("\naims, per CPU-second with 2 workers:")
        own = per_cpu[K_1]
        aims = [
            ("k = 1 of the limit", own / per_cpu.get(LIMIT, np.nan), 0.9),
            ("k = all, times k = 1", per_cpu.get(K_ALL, np.nan) / own, 4.5),
            ("warm cache, times k = 1", per_cpu.get(CACHED, np.nan) / own, 10.0),
            ("stored at training size, times k = 1", per_cpu.get(STORED, np.nan) / own, 1.4),
            *(
                (f"k = 1, times {case.name}", own / per_cpu.get(case.name, np.nan), case.aim)
                for case in CASES
                if case.aim
            ),
        ]
        for what, value, aim in aims:
            if not np.isnan(value):
                print(f"  {what:45}{value:>7.2f}   aim {aim:.4g}{'' if value >= aim else '   missed'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1200, help="number of pictures in the corpus")
    parser.add_argument("--shared", type=Path, help="folder of real data")
    parser.add_argument("--rounds", type=int, default=3, help="number of interleaved rounds; the median is printed")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds to measure each loader in each round")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="run only loaders whose names have one of these words"
    )
    parser.add_argument("--work", type=Path, help="folder for corpus and stores; needs 4 GB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, work: Path) -> None:
    chosen = [
        number
        for number, case in enumerate(CASES)
        if not args.only or any(word.lower() in case.name.lower() for word in args.only)
    ]
    runnable = [number for number in chosen if not CASES[number].missing]
    os.environ["REFSEG_CACHE"] = str(work / "cache")
    # Each process is forked from one that has imported the common modules, so starting it takes little time.
    multiprocessing.set_forkserver_preload(["torchvision", "refseg.data.loader", "pipelines.build"])
    prepare(args, work, runnable)
    found: dict[tuple[int, int], list[Rates]] = defaultdict(list)
    for round_number in range(args.rounds):  # interleaved, so that other load on the machine affects all loaders
        for num_workers in WORKERS:
            for number in runnable:
                rates = measure_apart(number, work, num_workers, args.seconds)
                if rates is not None:
                    found[number, num_workers].append(rates)
                    print(
                        f"round {round_number + 1}, {num_workers} workers, {CASES[number].name}: "
                        f"{rates.per_second:,.0f}/s, {rates.per_cpu_second:,.0f}/CPU-s",
                        file=sys.stderr,
                        flush=True,
                    )
    print_table(found, chosen)


if __name__ == "__main__":
    main()
