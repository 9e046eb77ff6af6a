"""Offers a built dataset as a torch `Dataset` (`RefDataset`).

A sample is one ref, with the image at its stored size.
"""

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
    """The ids of a ref and its sentences in the source."""

    dataset: str
    """Id of the dataset, or of the member of a mix, for example `refcoco/unc`."""
    split: str
    """Split of the ref, for example `testA`."""
    ref_id: int
    """Id of the ref in the source."""
    image_id: int
    """COCO image id."""
    sent_ids: tuple[int, ...]
    """Ids of the sentences in the source, in the order of the sample's sentences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One referred region of one image, with every sentence that names it.

    Attributes:
        image: Picture at its stored size, RGB, 0 to 255.
        mask: Target at the picture's original size. True is object.
        sentences: Sentences as cleaned by the dataset's authors, at least one.
        sentence_exists: For each sentence, False if it names nothing in this image, so that its target is empty.
        ids: Ids of the ref and its sentences.
        category: COCO category name of the target. Empty if the source has none.
        file_name: File name of the image in the source.
    """

    image: UInt8[Tensor, "3 H W"]
    mask: Bool[Tensor, "H W"]
    sentences: tuple[str, ...]
    sentence_exists: tuple[bool, ...]
    ids: RefIds
    category: str
    file_name: str


class RefDataset(Dataset[Sample]):
    """The refs of some splits, each once, in the order of the index.

    It is meant for inspecting samples and for other projects' training code. Pictures have different sizes, so torch's
    `DataLoader` needs `collate_fn=list`. `loader` is intended for training. It returns batches of one size and packs
    them several times faster. It yields each sample exactly once per epoch, for any number of ranks and after any
    resume.

    Attributes:
        index: Index of the dataset.
    """

    def __init__(self, index: ManifestIndex) -> None:
        """Use an index.

        Args:
            index: Index of the splits to read.
        """
        self.index = index

    def __len__(self) -> int:
        """Number of refs."""
        return self.index.num_rows

    def __getitem__(self, position: SupportsIndex) -> Sample:
        """Read and decode one sample.

        Args:
            position: Position from 0. A negative position counts from the end.

        Raises:
            IndexError: If the position does not exist.
            DatasetError: If the image cannot be read, or differs from the one that was built.
            StorageError: If remote storage refuses access or fails.
        """
        index = self.index
        row = operator.index(position)
        if not -len(self) <= row < len(self):
            raise IndexError(f"{index.folder}: found no sample at position {row}, expected one of {len(self)} samples")
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
        """Iterate over all samples in order."""
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
        """Return a loader of one rank's batches. The method `set_epoch` of the loader chooses the epoch.

        With accelerate, give the result to `refseg.data.loader.prepare_loader`, never to `accelerator.prepare`.

        Args:
            batch_size: Number of samples per step over all ranks.
            geometry: Geometry from the original picture to the network's input, the same as for evaluation.
            rank: Rank of this process. With accelerate it is `process_index`.
            world_size: Number of processes. With accelerate it is `num_processes`.
            options: Further attributes of `refseg.reading.Reading`, such as `num_tokens`, `sampling`, `shuffle`,
                `seed`, `remainder`, `num_workers`.

        Raises:
            UsageError: If a setting has an unknown value. If a number is too low. If numbers contradict each other.
        """
        return RefLoader(
            self.index, geometry=geometry, global_batch=batch_size, rank=rank, world_size=world_size, **options
        )
