"""What can be downloaded: `manifests/downloads.toml`, checked."""

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
    """A file and how it is recognised.

    Attributes:
        num_bytes: Its size; None for a file that is fetched by hand.
        sha256: Its digest; empty for a file that is fetched by hand.
        found_in: How many public sources state the digest.
        mirrors: Addresses of the file, in the order in which they are tried.
        by_hand: Where a person finds a file of which no digest is known; empty for all others.
        terms: Keys of the licences and terms.
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
    """Images that are released as one archive; its files lie in a folder of the group's name.

    Attributes:
        archive: Name of the archive among the files.
        num_images: Images in it; 0 if that is not known.
        singles: Addresses of folders from which single images can be read by name.
    """

    archive: str
    num_images: int = 0
    singles: tuple[str, ...] = ()


class DatasetFiles(_Entry):
    """What a dataset needs.

    Attributes:
        annotations: Names of files.
        images: Names of groups of images.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]


class Catalogue(_Entry):
    """All that can be downloaded.

    Attributes:
        files: By name, which may hold a folder.
        images: By name of the group.
        datasets: By dataset id.
        terms: Licences and terms, by the keys that files name.
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
        """What a dataset needs; names as `find_dataset` takes them.

        Raises:
            UsageError: If there is no such dataset, or it is not in the catalogue.
        """
        found = self.datasets.get(find_dataset(dataset_id).dataset_id)
        if found is None:
            raise UsageError(
                f"{dataset_id}: no source of its files is known, expected one of {', '.join(self.datasets)}"
                f"{did_you_mean(dataset_id, self.datasets)}; docs/datasets.md says how its folder must look"
            )
        return found

    def terms_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """Licences and terms of some files, each once."""
        return tuple(self.terms[key] for key in dict.fromkeys(key for name in names for key in self.files[name].terms))


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read a catalogue; by default the one that comes with the toolkit.

    Raises:
        UsageError: If the file is not there or has mistakes, all of which are listed.
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
