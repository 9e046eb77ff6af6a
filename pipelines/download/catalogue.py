"""Reads and checks the catalogue of downloadable files, `manifests/downloads.toml`."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from refseg.dataset.schema import find_dataset
from refseg.errors import UsageError
from refseg.wording import did_you_mean


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PinnedFile(_Entry):
    """A downloadable file with its size and digest.

    Attributes:
        num_bytes: Size of the file in bytes; None for a file that is fetched by hand.
        sha256: SHA-256 of the file; empty for a file that is fetched by hand.
        found_in: Description of the public sources that state the digest.
        mirrors: Addresses of the file, in the order in which they are tried.
        by_hand: Where the user finds the file, if its digest is not known; empty for all other files.
        terms: Keys in `Catalogue.terms` of the licences and terms of use.
    """

    num_bytes: int | None = Field(None, alias="bytes", gt=0)
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    found_in: str = ""
    mirrors: tuple[str, ...] = ()
    by_hand: str = ""
    terms: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_pin(self) -> "PinnedFile":
        if bool(self.by_hand) == bool(self.num_bytes and self.sha256 and self.mirrors):
            raise ValueError("expected bytes, sha256 and mirrors, or by_hand alone")
        return self


class ImageGroup(_Entry):
    """Images that are released as one archive. In the archive they are in a folder with the group's name.

    Attributes:
        archive: Name of the archive among the files.
        num_images: Number of images in the archive; 0 if it is not known.
        singles: Addresses of folders from which single images can be read by name.
    """

    archive: str
    num_images: int = 0
    singles: tuple[str, ...] = ()


class DatasetFiles(_Entry):
    """The files and images of one dataset.

    Attributes:
        annotations: Names of the annotation files in `Catalogue.files`.
        images: Names of the image groups in `Catalogue.images`.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]


class Catalogue(_Entry):
    """All files that can be downloaded, and the datasets that need them.

    Attributes:
        files: Files by name. A name may contain a folder.
        images: Image groups by name.
        datasets: The files of each dataset, by dataset id.
        terms: Licences and terms of use, by key.
    """

    files: dict[str, PinnedFile]
    images: dict[str, ImageGroup]
    datasets: dict[str, DatasetFiles]
    terms: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_names(self) -> "Catalogue":
        named = [name for dataset in self.datasets.values() for name in dataset.annotations]
        unknown = {*named, *(group.archive for group in self.images.values())} - self.files.keys()
        unknown |= {name for dataset in self.datasets.values() for name in dataset.images} - self.images.keys()
        unknown |= {name for file in self.files.values() for name in file.terms} - self.terms.keys()
        if unknown:
            raise ValueError(f"named and not defined: {', '.join(sorted(unknown))}")
        for name in self.files:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"a file's name leads out of the folder: {name}")
        return self

    def find(self, dataset_id: str) -> DatasetFiles:
        """Return the files of a dataset. `find_dataset` defines the accepted names.

        Raises:
            UsageError: If the dataset does not exist, or is not in the catalogue.
        """
        found = self.datasets.get(find_dataset(dataset_id).dataset_id)
        if found is None:
            raise UsageError(
                f"{dataset_id}: no source of its files is known, expected one of {', '.join(self.datasets)}"
                f"{did_you_mean(dataset_id, self.datasets)}; docs/datasets.md says how its folder must look"
            )
        return found

    def terms_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the licences and terms of use of some files, without repetitions."""
        return tuple(self.terms[key] for key in dict.fromkeys(key for name in names for key in self.files[name].terms))


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read a catalogue. The default is the toolkit's own catalogue.

    Raises:
        UsageError: If the file does not exist, or has mistakes. The message lists all mistakes.
    """
    try:
        text = (path or files("manifests") / "downloads.toml").read_text(encoding="utf-8-sig")
        return Catalogue.model_validate(tomllib.loads(text))
    except OSError as error:
        raise UsageError(f"--catalogue {path}: cannot be read ({error.strerror}); expected a TOML file") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise UsageError("\n".join([f"--catalogue {path}: found mistakes", *lines])) from error
    except ValueError as error:  # of TOML and of the encoding
        raise UsageError(f"--catalogue {path}: is not TOML ({error})") from error
