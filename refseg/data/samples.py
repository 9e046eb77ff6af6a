"""A built dataset as torch's `Dataset`: one ref at a time, at the picture's own size; and the way to a loader."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.transforms import Geometry
from refseg.wording import counted


class RefIds(NamedTuple):
    """What names one ref and its sentences outside this library."""

    dataset: str
    """Id of the dataset, or of the member of a mix, for example `refcoco/unc`."""
    split: str
    """Of the ref."""
    ref_id: int
    """Id in the source."""
    image_id: int
    """COCO image id."""
    sent_ids: tuple[int, ...]
    """Ids in the source, in the order of the sample's sentences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One referred region of one image, with every sentence that names it.

    Attributes:
        image: RGB, 0 to 255, as the JPEG stores it.
        mask: The target: True is object.
        sentences: As cleaned by the dataset's authors, at least one.
        sentence_exists: Per sentence; False: it names nothing in this image, so its own target is empty.
        ids: Of the ref and its sentences.
        category: COCO's name of the target's kind; empty where the source has none.
        file_name: Of the image in the source.
    """

    image: UInt8[Tensor, "3 H W"]
    mask: Bool[Tensor, "H W"]
    sentences: tuple[str, ...]
    sentence_exists: tuple[bool, ...]
    ids: RefIds
    category: str
    file_name: str


class RefDataset(Dataset[Sample]):
    """The refs of some splits, by position: in the order of the index, every ref once.

    Made for looking at samples and for other projects' training code. Samples have pictures of different sizes, so
    torch's `DataLoader` needs `collate_fn=list`. `loader` gives batches of one size, which it packs several times
    faster, and which are exact over ranks and resumes.

    Attributes:
        index: Where everything lies.
    """

    def __init__(self, index: ManifestIndex) -> None:
        """Show an index as samples.

        Args:
            index: What to read.
        """
        self.index = index

    def __len__(self) -> int:
        """Refs."""
        return self.index.num_rows

    def __getitem__(self, position: SupportsIndex) -> Sample:
        """Read and decode one sample.

        Args:
            position: From 0; negative counts from the end.

        Raises:
            IndexError: If there is no such sample.
            DatasetError: If its image cannot be read, or is not what was built.
        """
        index = self.index
        row = operator.index(position)
        if not -len(self) <= row < len(self):
            raise IndexError(f"{index.folder}: found no sample {row}, expected one of {len(self)}")
        row %= len(self)
        image = int(index.row_image[row])
        sentences = range(int(index.sentence_start[row]), int(index.sentence_start[row + 1]))
        return Sample(
            image=index.decode_image(image),
            mask=torch.from_numpy(np.ascontiguousarray(index.target_mask(row))).bool(),
            sentences=tuple(str(index.sent[sentence]) for sentence in sentences),
            sentence_exists=tuple(bool(index.sentence_exists[sentence]) for sentence in sentences),
            ids=RefIds(
                dataset=index.datasets[index.row_dataset[row]],
                split=index.splits[index.row_split[row]],
                ref_id=int(index.ref_id[row]),
                image_id=int(index.image_id[image]),
                sent_ids=tuple(int(index.sent_id[sentence]) for sentence in sentences),
            ),
            category=str(index.category[row]),
            file_name=str(index.file_name[image]),
        )

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        index = self.index
        return (
            f"<RefDataset {index.descriptor.dataset} {'+'.join(index.splits)}: {counted(len(self), 'ref')}, "
            f"{counted(index.num_sentences, 'sentence')}, {counted(index.num_images, 'image')}>"
        )

    def loader(
        self,
        *,
        batch_size: int,
        geometry: Geometry,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> RefLoader:
        """Batches of one rank for a network; `set_epoch` of the result chooses the epoch.

        With accelerate give the result to `refseg.data.loader.prepare_loader`, never to `accelerator.prepare`.

        Args:
            batch_size: Samples per step over all ranks.
            geometry: To the network's input; evaluation asks for the same.
            rank: Of this process: accelerate's `process_index`.
            world_size: Number of processes: accelerate's `num_processes`.
            options: Further attributes of `refseg.reading.Reading`, such as `num_tokens`, `sampling`, `shuffle`,
                `seed`, `remainder`, `num_workers`.

        Raises:
            UsageError: If a word is unknown, a number too low, or the numbers do not fit together.
        """
        return RefLoader(
            self.index, geometry=geometry, global_batch=batch_size, rank=rank, world_size=world_size, **options
        )
