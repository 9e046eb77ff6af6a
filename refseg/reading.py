"""How a dataset is read: the one specification that loaders, plans, `refseg doctor` and recipes take. No torch.

What differs between processes (the rank, the epoch to begin with) is not part of it.
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
"""What a sample is. `ref`: each ref once in an epoch, with one random sentence. `sentence`: each sentence once.
`images`: each image once, with `expressions_per_image` of its sentences."""
Remainder = Literal["drop", "pad"]
"""What happens to the last samples that fill no global batch. `pad` repeats samples, marked, for scoring."""
WorkerKind = Literal["threads", "processes"]
"""Who packs. `threads`: decoding and resizing release Python's lock, and nothing is handed from process to process.
`processes`: for so many workers that the lock, which is held for a tenth of a sample's time, would be their limit."""
DecodePlace = Literal["cpu", "device"]
"""Where pictures are decoded and resized. `cpu`: by the workers. `device`: by the training process, on its device."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """What a sample is, how it becomes network input, and who does the work; a recipe's `[data]` section extends it.

    pydantic compares a recipe's values with the annotations; `__post_init__` checks those of a Python caller.

    Attributes:
        input_size: Height and width of the network's input in pixels.
        geometry: letterbox keeps the aspect ratio and pads (CRIS); stretch does neither (LAVT).
        num_tokens: Token ids per expression, SOS and EOS included; longer ones are cut and keep their EOS.
        sampling: What an epoch visits once: each ref with one random sentence, each sentence, or each image.
        expressions_per_image: With sampling by images, how many sentences of each image, chosen anew each epoch
            without repetition from all sentences of all its refs, or all of them. An image with fewer gives all it has.
        remainder: What happens to samples that do not fill the last global batch of an epoch: they are left out, or
            the batch is filled with marked repeats.
        num_workers: Threads or processes of each rank that pack batches; with 0 a batch is packed when it is asked for.
        worker_kind: Threads cost least; processes are for more than about eight workers a rank, which would wait for
            Python's lock.
        decode: Who decodes pictures: the workers on the CPU, or the GPU (nvJPEG, whose pixels differ a little), to
            spare cores.
        cache_gigabytes: Disk of each machine for decoded, resized images, below REFSEG_CACHE; with 0 they are decoded
            every time. All processes and runs of one index and geometry share them.

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
                "which has one per image; expected sampling 'images'"
            )
        if self.expressions_per_image != "all":
            check_number("expressions_per_image", self.expressions_per_image, least=1, more=", or 'all'")
        if not (math.isfinite(self.cache_gigabytes) and self.cache_gigabytes >= 0):
            raise UsageError(f"cache_gigabytes is {self.cache_gigabytes!r}; expected a number, at least 0")
        if self.decode == "device" and self.cache_gigabytes:
            raise UsageError(
                "images decoded on the device do not come back to this machine's cache of decoded images; "
                "expected one of the two: decode on the CPU, or set the cache to 0"
            )

    @property
    def cache_bytes(self) -> int:
        """Largest size of the cache of decoded images; 0: no cache."""
        return round(1e9 * self.cache_gigabytes)

    @property
    def image_bytes(self) -> int:
        """Size of one decoded image of the network's input."""
        height, width = self.input_size
        return 3 * height * width


@dataclass(frozen=True, kw_only=True)
class Reading(ReadingOptions):
    """The whole specification: the options, and how an epoch is ordered and divided into batches.

    Attributes:
        global_batch: Samples of a step over all processes.
        seed: Seed of the order of samples and of the choice of sentences.
        shuffle: False: samples in the index's order, each once, whatever a mix's weights: for evaluation. The choice
            of sentences stays random either way.
        trim_tokens: Make L the length of the batch's longest sentence instead of `num_tokens`.
        image_mean: Mean colour behind a letterbox's border, RGB from 0 to 1: that of the model's normalisation.

    Raises:
        UsageError: As `ReadingOptions`.
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
        """Complete options, such as a recipe's, to a whole specification.

        Args:
            options: For example `recipe.data`.
            others: The remaining attributes; any of the options is replaced by one that is given here.

        Raises:
            UsageError: As `ReadingOptions`.
        """
        return cls(**{field.name: getattr(options, field.name) for field in fields(ReadingOptions)} | others)

    @property
    def order_name(self) -> str:
        """What the order depends on beside dataset, seed and epoch, for example `images 4`."""
        number = f" {self.expressions_per_image}" if self.sampling == "images" else ""
        return f"{self.sampling}{number}{'' if self.shuffle else ' in order'}"
