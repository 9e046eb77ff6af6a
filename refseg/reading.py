"""How a dataset is read: the one specification that loaders, plans, `refseg doctor` and recipes take; without torch.

Values that differ between processes or runs, such as the rank and the first epoch, are not part of it.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from refseg.arguments import check_number, check_word
from refseg.errors import UsageError
from refseg.geometry import CLIP_MEAN, GeometryKind
from refseg.model_config import Count, Natural

Sampling = Literal["ref", "sentence", "images"]
"""What a sample is. `ref`: each ref occurs once in an epoch, with one random sentence. `sentence`: each sentence occurs
once. `images`: each image occurs once, with `expressions_per_image` of its sentences."""
Remainder = Literal["drop", "pad"]
"""What happens to the last samples of an epoch that do not fill a global batch. `drop` leaves them out. `pad` fills the
batch with repeated samples, which are marked so that an evaluation does not count them."""
WorkerKind = Literal["threads", "processes"]
"""How batches are packed. `threads`: decoding and resizing release Python's lock, and no batch is copied between
processes. `processes`: for many workers, because the lock is held for a tenth of a sample's time and limits threads."""
DecodePlace = Literal["cpu", "device"]
"""Where pictures are decoded and resized. `cpu`: by the workers. `device`: by the training process, on its device."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Defines what a sample is, how it becomes network input, and which workers do this; extended by `[data]`.

    pydantic checks the values of a recipe's `[data]` section; `__post_init__` checks those of a Python caller.

    Attributes:
        input_size: Height and width of the network's input in pixels.
        geometry: letterbox keeps the aspect ratio and pads (CRIS); stretch does neither (LAVT).
        num_tokens: Token ids per expression, SOS and EOS included; longer expressions are cut and keep their EOS.
        sampling: What an epoch visits once: each ref with one random sentence, each sentence, or each image.
        expressions_per_image: With sampling by images, the number of sentences of each image, or all. They are chosen
            again for each epoch, without repetition, from all refs of the image; an image with fewer gives all it has.
        remainder: What happens to samples that do not fill the last global batch of an epoch: they are left out, or
            the batch is filled with marked repeats.
        num_workers: Threads or processes of each rank that pack batches; with 0 a batch is packed when it is needed.
        worker_kind: Threads cost least; processes are for more than about eight workers a rank, which would wait for
            Python's lock.
        decode: Where pictures are decoded: by the workers on the CPU, or on the GPU to spare CPU cores (by nvJPEG,
            whose pixels differ slightly).
        cache_gigabytes: Disk space on each machine, below REFSEG_CACHE, for decoded and resized images; with 0 they
            are decoded every time. All processes and runs of one index and geometry share them.

    Raises:
        UsageError: If a word is unknown, a number too low, or two values do not go together.
    """

    input_size: tuple[int, int] = (480, 480)
    geometry: GeometryKind = "letterbox"
    num_tokens: int = 17
    sampling: Sampling = "ref"
    expressions_per_image: Count | Literal["all"] = 1
    remainder: Remainder = "drop"
    num_workers: Natural = 0
    worker_kind: WorkerKind = "threads"
    decode: DecodePlace = "cpu"
    cache_gigabytes: Annotated[float, Field(ge=0, strict=True)] = 0.0

    def __post_init__(self) -> None:
        check_word("geometry", self.geometry, GeometryKind)
        for side in self.input_size:
            check_number("a side of the input", side, least=1)
        check_word("sampling", self.sampling, Sampling)
        check_word("remainder", self.remainder, Remainder)
        check_word("worker_kind", self.worker_kind, WorkerKind)
        check_word("decode", self.decode, DecodePlace)
        check_number("num_workers", self.num_workers, least=0)
        check_number("num_tokens", self.num_tokens, least=2, more=" (SOS and EOS)")
        if self.sampling != "images" and self.expressions_per_image != 1:
            raise UsageError(
                f"expressions_per_image is {self.expressions_per_image} with sampling {self.sampling!r}, "
                "whose samples have one expression; expected sampling 'images'"
            )
        if self.expressions_per_image != "all":
            check_number("expressions_per_image", self.expressions_per_image, least=1, more=", or 'all'")
        if not (math.isfinite(self.cache_gigabytes) and self.cache_gigabytes >= 0):
            raise UsageError(f"cache_gigabytes is {self.cache_gigabytes!r}; expected a number, at least 0")
        if self.decode == "device" and self.cache_gigabytes:
            raise UsageError(
                "decode is 'device' and cache_gigabytes is not 0, but images that are decoded on the device are not "
                "cached; decode on the CPU, or set cache_gigabytes to 0"
            )

    @property
    def cache_bytes(self) -> int:
        """Largest size of the cache of decoded images in bytes; 0: no cache."""
        return round(1e9 * self.cache_gigabytes)

    @property
    def image_bytes(self) -> int:
        """Size in bytes of one decoded image at the network's input size."""
        height, width = self.input_size
        return 3 * height * width


@dataclass(frozen=True, kw_only=True)
class Reading(ReadingOptions):
    """The complete specification: the options, and how an epoch is ordered and divided into batches.

    Attributes:
        global_batch: Samples of a step over all processes.
        seed: Seed of the order of samples and of the choice of sentences.
        shuffle: True: a random order. False: the index's order, in which each sample occurs once even if a mix has
            weights, for evaluation. The choice of sentences is random in both cases.
        trim_tokens: Set L to the length of the batch's longest sentence instead of `num_tokens`.
        image_mean: Colour of the border of a letterbox, RGB from 0 to 1. It is the mean of the model's normalisation,
            so that the border becomes 0.

    Raises:
        UsageError: If a word is unknown, a number too low, or two values do not go together.
    """

    global_batch: int
    seed: int = 0
    shuffle: bool = True
    trim_tokens: bool = False
    image_mean: tuple[float, float, float] = CLIP_MEAN

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("global_batch", self.global_batch, least=1)
        check_number("seed", self.seed, least=0)

    @classmethod
    def of(cls, options: ReadingOptions, **others: Any) -> "Reading":
        """Complete options, such as those of a recipe, to a whole specification.

        Args:
            options: The options, for example `recipe.data`.
            others: The remaining attributes of `Reading`; a value given here also replaces an option of that name.

        Raises:
            UsageError: If a word is unknown, a number too low, or two values do not go together.
        """
        return cls(**{field.name: getattr(options, field.name) for field in fields(ReadingOptions)} | others)

    @property
    def order_name(self) -> str:
        """Text of what the order depends on besides dataset, seed and epoch, for example `images 4`."""
        number = f" {self.expressions_per_image}" if self.sampling == "images" else ""
        return f"{self.sampling}{number}{'' if self.shuffle else ' in order'}"
