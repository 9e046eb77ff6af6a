"""Plain streaming of the tars by the `webdataset` library: for storage without range reads, or tars without manifests.

It is approximate, and `loader.RefLoader` is not. What is approximate:

- Order: shards are permuted, images only within a buffer; sentences of one image come one after the other.
- Division: ranks and workers take whole shards, so they get unequal numbers of samples, and nothing where there are
  fewer shards than rank × worker. An epoch ends on each when its shards do: do not train DDP on it without `join`.
- Counting: there is no length and no cursor, a resume starts the epoch again, and image hashes are not checked.

Every expression of the shards still comes exactly once per epoch over all ranks and workers.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from refseg import tokenizer
from refseg.data.decode import decode_rgb
from refseg.data.transforms import Geometry
from refseg.errors import DatasetError, ImageError, UsageError


class StreamSample(NamedTuple):
    """One expression; torch's default collation stacks these into batches."""

    image: UInt8[Tensor, "3 H W"]
    """RGB, 0 to 255, by the geometry; expressions of one image share the memory."""
    mask: UInt8[Tensor, "H W"]
    """Target at the network's size."""
    token_ids: Int64[Tensor, "L"]
    """SOS, words, EOS (kept when cut), then zeros."""
    token_mask: Bool[Tensor, "L"]
    """True from SOS to EOS."""
    image_id: int
    ref_id: int
    sent_id: int


def stream(
    urls: Sequence[str],
    *,
    geometry: Geometry,
    num_tokens: int,
    shuffle_images: int = 0,
    seed: int = 0,
    epoch: int = 0,
) -> Iterable[StreamSample]:
    """Stream one epoch of expressions, split over ranks and workers by shard; give it to a torch `DataLoader`.

    Args:
        urls: Tars: paths, or whatever `webdataset` opens (`https:`, `pipe:`).
        geometry: To the network's input.
        num_tokens: L; longer sentences are cut, keeping EOS.
        shuffle_images: Images in the shuffle buffer; 0 keeps the shards' order and that of the images in them.
        seed: Of the shuffling.
        epoch: Changes the shuffling; make a new stream for each epoch.

    Raises:
        UsageError: If there are no urls.
    """
    if not urls:
        raise UsageError("no tar to stream; expected at least one url")
    urls = list(urls)
    rng = random.Random(f"{seed} {epoch}")
    if shuffle_images:
        rng.shuffle(urls)  # before the split, by the same seed on each rank: else ranks overlap

    return wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.split_by_node,
        wds.split_by_worker,
        _open_and_close,
        tar_file_expander,
        group_by_keys,
        *([wds.shuffle(shuffle_images, initial=shuffle_images, rng=rng)] if shuffle_images else []),
        partial(_expressions, geometry=geometry, num_tokens=num_tokens),
    )


def _open_and_close(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The library's opener, but one that closes: its own leaves a descriptor open for each shard."""
    for source in sources:
        with wds.gopen(source["url"]) as opened:
            yield {**source, "stream": opened}


def _expressions(samples: Iterable[dict[str, Any]], *, geometry: Geometry, num_tokens: int) -> Iterator[StreamSample]:
    """All expressions of tar samples; each picture is decoded once.

    Raises:
        DatasetError: If a sample has not the two members of ours, or its picture cannot be decoded.
    """
    for sample in samples:
        where = f"{sample['__url__']}: sample {sample['__key__']}"
        try:
            facts = json.loads(sample["json"])
            image = geometry.apply_image(decode_rgb(np.frombuffer(bytearray(sample["jpg"]), np.uint8)))
        except KeyError as error:
            raise DatasetError(
                f"{where}: found no member {error}, expected jpg and json; stream refseg's shards"
            ) from error
        except ImageError as error:
            raise DatasetError(f"{where}: {error}; `refseg verify` the dataset") from error
        for ref in facts["refs"]:
            height, width = ref["mask"]["size"]
            counts = np.array(ref["mask"]["counts"], np.uint32)
            mask = torch.from_numpy(geometry.apply_mask(counts, (height, width)))
            for sentence in ref["sentences"]:
                cut = tokenizer.truncate(sentence["token_ids"], num_tokens)
                token_ids = torch.zeros(num_tokens, dtype=torch.int64)
                token_ids[: len(cut)] = torch.tensor(cut)
                yield StreamSample(
                    image=image,
                    mask=mask,
                    token_ids=token_ids,
                    token_mask=torch.arange(num_tokens) < len(cut),
                    image_id=facts["image_id"],
                    ref_id=ref["ref_id"],
                    sent_id=sentence["sent_id"],
                )
