"""Other loaders for the corpus of `loader.py`, each an endless generator of (images, masks, token ids).

Each library is used as its documentation describes, with its own loader and collation. Where the documentation leaves a
choice, the faster option is used. Loaders of floats deliver normalised images, as the original pipelines do.
"""

import pickle
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from loader_stores import TOKENS, Ref, load_refs
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, decode_png
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from refseg.geometry import CLIP_MEAN
from refseg.models.image_encoder import CLIP_STD

SIDE, BATCH = 480, 32
Arrays = tuple[Tensor, Tensor, Tensor]
"""Images `(B, 3, SIDE, SIDE)`, masks `(B, SIDE, SIDE)`, token ids `(B, TOKENS)`."""


def _forever(loader: Iterable[Any]) -> Iterator[Arrays]:
    """Repeat the epochs of a loader with the same workers."""
    while True:
        for batch in loader:
            yield tuple(batch)


def _loader(dataset: Any, num_workers: int) -> Iterator[Arrays]:
    return _forever(
        DataLoader(
            dataset, batch_size=BATCH, shuffle=True, num_workers=num_workers, persistent_workers=True, drop_last=True
        )
    )


def _any(sentences: Sequence[Any]) -> Any:
    return sentences[random.randrange(len(sentences))]


class _FilePerImage(Dataset[Arrays]):
    """LAVT's dataset, which turns file, polygons and text into tensors when a sample is read."""

    def __init__(self, refs: list[Ref]) -> None:
        import open_clip

        self.refs = refs
        self.tokenizer = open_clip.SimpleTokenizer(context_length=TOKENS)

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, number: int) -> Arrays:
        ref = self.refs[number]
        image = transforms.resize(Image.open(ref.path).convert("RGB"), [SIDE, SIDE])
        drawn = coco_mask_sum(ref)
        mask = transforms.resize(Image.fromarray(drawn), [SIDE, SIDE], interpolation=v2.InterpolationMode.NEAREST)
        pixels = transforms.normalize(transforms.to_dtype(transforms.to_image(image), scale=True), CLIP_MEAN, CLIP_STD)
        target = torch.as_tensor(np.asarray(mask).copy(), dtype=torch.int64)
        return pixels, target, self.tokenizer(_any(ref.sentences))[0]


def coco_mask_sum(ref: Ref) -> np.ndarray:
    """Draw every polygon and return their sum, as REFER's `getMask` does."""
    from pycocotools import mask as coco_mask

    drawn = coco_mask.decode(coco_mask.frPyObjects(ref.polygons, *ref.size))
    return np.sum(drawn, axis=2).astype(np.uint8)


def file_per_image(store: Path, num_workers: int) -> Iterator[Arrays]:
    return _loader(_FilePerImage(load_refs(store)), num_workers)


class _Lmdb(Dataset[Arrays]):
    """CRIS's dataset with a stretched geometry: cv2's warp with bicubic interpolation, then conversion to float."""

    def __init__(self, store: Path, num_refs: int) -> None:
        import open_clip

        self.path, self.num_refs, self.store = str(store / "train.lmdb"), num_refs, None
        self.tokenizer = open_clip.SimpleTokenizer(context_length=TOKENS)
        self.mean = torch.tensor(CLIP_MEAN).reshape(3, 1, 1)
        self.std = torch.tensor(CLIP_STD).reshape(3, 1, 1)

    def __len__(self) -> int:
        return self.num_refs

    def __getitem__(self, number: int) -> Arrays:
        import cv2
        import lmdb

        if self.store is None:
            cv2.setNumThreads(0)
            self.store = lmdb.open(self.path, subdir=False, readonly=True, lock=False, readahead=False, meminit=False)
        with self.store.begin(write=False) as transaction:
            entry = pickle.loads(transaction.get(str(number).encode()))
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(entry["img"], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        mask = cv2.imdecode(np.frombuffer(entry["mask"], np.uint8), cv2.IMREAD_GRAYSCALE)
        height, width = mask.shape
        matrix = np.array([[SIDE / width, 0, 0], [0, SIDE / height, 0]], np.float32)
        border = [channel * 255 for channel in CLIP_MEAN]
        image = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderValue=border)
        mask = cv2.warpAffine(mask, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=0.0)
        pixels = torch.from_numpy(image.transpose((2, 0, 1))).float()
        pixels.div_(255.0).sub_(self.mean).div_(self.std)
        return pixels, torch.from_numpy(mask).float(), self.tokenizer(_any(entry["sents"]))[0]


def lmdb_cv2(store: Path, num_workers: int) -> Iterator[Arrays]:
    import cv2  # noqa: F401  # fails here, and not in a worker, if it is not installed

    return _loader(_Lmdb(store, len(load_refs(store))), num_workers)


def _plain_sample(sample: tuple[Image.Image, Image.Image, dict[str, Any]]) -> Arrays:
    image, mask, facts = sample
    pixels = transforms.to_dtype(transforms.to_image(transforms.resize(image, [SIDE, SIDE])), scale=True)
    target = transforms.resize(mask, [SIDE, SIDE], interpolation=v2.InterpolationMode.NEAREST)
    ids = torch.tensor(_any(facts["token_ids"]))
    return transforms.normalize(pixels, CLIP_MEAN, CLIP_STD), torch.from_numpy(np.array(target)[..., 0]), ids


def webdataset_plain(store: Path, num_workers: int) -> Iterator[Arrays]:
    """Read as webdataset's documentation shows: shuffle, `decode("pil")`, `to_tuple`, `map`, `batched`, `WebLoader`."""
    import webdataset as wds

    tars = [str(path) for path in sorted((store / "plain").glob("*.tar"))]
    dataset = (
        wds.WebDataset(tars, shardshuffle=100)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "png", "json")
        .map(_plain_sample)
        .batched(BATCH, partial=False)
    )
    return _forever(wds.WebLoader(dataset, batch_size=None, num_workers=num_workers, persistent_workers=True))


def draw_runs(counts: np.ndarray, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Draw a mask at the input's size from run lengths, by selecting columns and then their rows."""
    pixels = np.repeat((np.arange(len(counts)) & 1).astype(np.uint8), counts).reshape(size[1], size[0])
    return np.ascontiguousarray(pixels[columns][:, rows].T)


def nearest(length: int) -> np.ndarray:
    return ((np.arange(SIDE) + 0.5) * length / SIDE).astype(np.int64)


def resize_uint8(image: Tensor) -> Tensor:
    """Resize to `(SIDE, SIDE, 3)`, in the memory layout for which torch has its fastest kernel."""
    laid_out = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(laid_out, (SIDE, SIDE), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _best_sample(sample: dict[str, bytes]) -> tuple[Tensor, np.ndarray, np.ndarray]:
    data = torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8)
    runs = np.frombuffer(sample["runs"], np.uint32)
    size = int(runs[0]), int(runs[1])
    ids = np.frombuffer(sample["tokens"], np.int64).reshape(-1, TOKENS)
    image = resize_uint8(decode_jpeg(data, mode=ImageReadMode.RGB))
    return image, draw_runs(runs[2:], size, nearest(size[0]), nearest(size[1])), _any(ids)


def _best_batch(samples: list[tuple[Tensor, np.ndarray, np.ndarray]]) -> Arrays:
    images, masks, ids = zip(*samples, strict=True)
    return (
        torch.stack(images).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(masks)),
        torch.from_numpy(np.stack(ids)),
    )


def webdataset_best(store: Path, num_workers: int) -> Iterator[Arrays]:
    """Read with the least work that webdataset allows.

    Images are uint8, run lengths and ids are raw bytes, and the workers make the batches.
    """
    import webdataset as wds

    tars = [str(path) for path in sorted((store / "best").glob("*.tar"))]
    dataset = (
        wds.WebDataset(tars, shardshuffle=100)
        .shuffle(1000)
        .map(_best_sample)
        .batched(BATCH, collation_fn=_best_batch, partial=False)
    )
    return _forever(wds.WebLoader(dataset, batch_size=None, num_workers=num_workers, persistent_workers=True))


_to_float = v2.Compose(
    [v2.Resize((SIDE, SIDE), antialias=True), v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD)]
)


def _stored_sample(image: Tensor, mask_png: bytes, token_ids: Any) -> Arrays:
    """Decode and transform by torchvision, and take the token ids from the store."""
    mask = decode_png(torch.frombuffer(bytearray(mask_png), dtype=torch.uint8))
    target = transforms.resize(mask, [SIDE, SIDE], interpolation=v2.InterpolationMode.NEAREST)[0]
    return _to_float(image), target, torch.as_tensor(_any(token_ids))


def litdata(store: Path, num_workers: int) -> Iterator[Arrays]:
    import litdata as library

    class Refs(library.StreamingDataset):
        def __getitem__(self, index: Any) -> Arrays:
            sample = super().__getitem__(index)
            return _stored_sample(sample["image"], sample["mask"], sample["token_ids"])

    dataset = Refs(str(store / "litdata"), shuffle=True, drop_last=True)
    return _forever(
        library.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=num_workers, persistent_workers=True)
    )


def mosaicml(store: Path, num_workers: int) -> Iterator[Arrays]:
    import streaming

    class Refs(streaming.StreamingDataset):
        def __getitem__(self, index: int) -> Arrays:
            sample = super().__getitem__(index)
            image = decode_jpeg(torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8), ImageReadMode.RGB)
            return _stored_sample(image, sample["mask"], sample["token_ids"].copy())

    streaming.base.util.clean_stale_shared_memory()
    dataset = Refs(local=str(store / "mds"), shuffle=True, batch_size=BATCH)
    return _forever(
        streaming.StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=num_workers, persistent_workers=True, drop_last=True
        )
    )


def spdl(store: Path, num_workers: int) -> Iterator[Arrays]:
    """Read with SPDL's threads, whose decoder and scaler process a whole batch; run lengths and ids are in memory."""
    import spdl.io
    import spdl.pipeline

    refs = load_refs(store)
    edges = {length: nearest(length) for ref in refs for length in ref.size}

    def source() -> Iterator[Ref]:
        while True:
            yield from random.sample(refs, len(refs))

    def load(batch: list[Ref]) -> Arrays:
        pixels = spdl.io.load_image_batch([ref.path for ref in batch], width=SIDE, height=SIDE, pix_fmt="rgb24")
        masks = np.stack([draw_runs(ref.counts, ref.size, *(edges[side] for side in ref.size)) for ref in batch])
        ids = np.stack([_any(ref.token_ids) for ref in batch])
        return spdl.io.to_torch(pixels).permute(0, 3, 1, 2), torch.from_numpy(masks), torch.from_numpy(ids)

    def batches() -> Iterator[Arrays]:
        executor = ThreadPoolExecutor(num_workers)
        builder = spdl.pipeline.PipelineBuilder().add_source(source()).aggregate(BATCH)
        pipeline = (
            builder.pipe(load, concurrency=num_workers, executor=executor)
            .add_sink(2)
            .build(num_threads=1, max_failures=0)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    return batches()
