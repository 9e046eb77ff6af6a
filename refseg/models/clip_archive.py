"""Reads the tensors of a TorchScript archive without running code from it.

OpenAI publishes CLIP as TorchScript: a zip of `data.pkl` (a pickle of the module tree), `data/<key>` (the bytes of each
storage) and code. `torch.load(weights_only=True)` refuses such files, and `torch.jit.load` runs their code. This module
uses an unpickler that accepts a dozen names only, and builds the tensors from the stored bytes.
"""

import io
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refseg.errors import CheckpointError

_MAX_PICKLE_BYTES = 16 << 20  # the pickle of CLIP's ResNet-101 has less than one megabyte
_MAX_DIMS = 8
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Functions by which TorchScript marks the type of a list of numbers or tensors, such as a convolution's padding.
_TYPED_LISTS = {"build_boollist", "build_doublelist", "build_intlist", "build_tensorlist", "restore_type_tag"}
# Errors that a damaged zip or pickle can raise in its reader, besides the readers' own error classes.
_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError, MemoryError, RuntimeError),
    *(struct.error, zlib.error),
)


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a TorchScript archive by dotted name, in their stored types (mostly fp16 in CLIP).

    If all tensors are parameters or buffers, the result equals `torch.jit.load(path).state_dict()` bit for bit. A
    tensor that is a plain attribute of a module is returned, too, because only the archive's code tells them apart.

    Raises:
        CheckpointError: If the file is not a TorchScript archive. If it is truncated or damaged. If the pickle requests
            anything besides tensors, modules and plain values. The message names the requested object, which was not
            executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _Archive(path, archive).load()
        if not isinstance(root, _Module):
            raise ValueError(f"data.pkl holds a {type(root).__name__}, not a module")
        return dict(_named_tensors(root, "", set()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a TorchScript archive") from error
    except (zipfile.BadZipFile, pickle.PickleError, *_DAMAGED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}: not a TorchScript archive, or a truncated or damaged one ({reason}); fetch it again"
        ) from error


class _Module:
    """Represents a TorchScript module of any class. It stores only the attributes of the module."""

    attributes: dict[str, Any]


class _Archive:
    """Reads the pickle and the storages of one archive, and checks that they agree."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._zip = path, archive
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: found {len(pickles)} entries NAME/data.pkl in the zip, expected one")
        self._folder = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, tuple[torch.dtype, Tensor]] = {}

    def load(self) -> Any:
        """Unpickle the module tree and return its root."""
        info = self._zip.getinfo(f"{self._folder}data.pkl")
        if info.file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{self._path}: data.pkl has {info.file_size} bytes, expected at most {_MAX_PICKLE_BYTES}"
            )
        data = self._zip.read(info)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # raised for escapes in damaged strings
            for opcode, argument, _ in pickletools.genops(data):
                # The unpickler allocates its memo up to the largest index: a few bytes could ask for 64 GB.
                if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= len(data):
                    raise ValueError(f"the pickle stores a value at the memo index {argument}")
            return self._unpickler(io.BytesIO(data)).load()

    def _unpickler(self, file: io.BytesIO) -> pickle.Unpickler:
        """Create an unpickler with new functions and classes, because a pickle may set attributes on them."""

        class Module(_Module):
            def __setstate__(self, state: Any) -> None:
                if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
                    raise ValueError("a module's state is not a dictionary with names as keys")
                self.attributes = state

        num_bytes = 0

        def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Tensor:
            nonlocal num_bytes
            tensor = _view(storage, offset, size, stride)
            num_bytes += tensor.nbytes
            if num_bytes > file_bytes:  # many tensors that share one storage could use up all memory
                raise ValueError(f"its tensors need more bytes than the {file_bytes:,} of the file")
            return tensor

        def keep(value: Any, *_tag: Any) -> Any:
            return value

        path, read_storage, file_bytes = self._path, self._read_storage, self._path.stat().st_size

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if module.split(".")[0] == "__torch__":
                    return Module
                if module == "torch" and name in _STORAGES:
                    return name
                if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                    return rebuild_tensor
                if (module, name) == ("collections", "OrderedDict"):
                    return OrderedDict
                if module == "torch.jit._pickle" and name in _TYPED_LISTS:
                    return keep
                raise CheckpointError(
                    f"{path}: its pickle asks for {module}.{name}, expected tensors and modules alone; none of its "
                    "code was run; it may run code when loaded elsewhere, do not use it"
                )

            def persistent_load(self, pid: Any) -> Any:
                return read_storage(pid)

        return Unpickler(file)

    def _read_storage(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor. `pid` is ("storage", type, key, device, number of elements)."""
        match pid:
            case ("storage", str(kind), str(key), str(), int(num_elements)) if kind in _STORAGES and key.isdecimal():
                dtype = _STORAGES[kind]
            case _:
                raise ValueError(f"unknown kind of storage {pid!r}")
        if key not in self._storages:
            info = self._zip.getinfo(f"{self._folder}data/{key}")
            # Uncompressed entries are required: then no entry is larger than the file itself.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"data/{key} is compressed")
            self._storages[key] = dtype, torch.frombuffer(bytearray(self._zip.read(info)), dtype=torch.uint8)
        known_dtype, data = self._storages[key]
        if known_dtype != dtype or len(data) != num_elements * dtype.itemsize:
            raise ValueError(f"data/{key} has {len(data)} bytes, expected {num_elements} elements of {dtype}")
        return data.view(dtype)


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return a tensor with its own memory, after checking the bounds.

    `torch.as_strided` does not check them for the view of a storage and would read past its end.
    """
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without storage, size and stride")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise ValueError(f"a tensor that ends at element {last} of a storage of {len(storage)}")
    num_elements = 1
    for n in size:
        num_elements *= n
    if num_elements > len(storage):  # a stride of 0 could repeat few bytes until all memory is used up
        raise ValueError(f"a tensor of size {size} over a storage of {len(storage)}")
    return storage.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def _named_tensors(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module in the order of its attributes, then those of its child modules."""
    if id(module) in seen:  # CLIP shares no module; a module that contains itself would lead to an endless recursion
        raise ValueError(f"the module {prefix.removesuffix('.')} has two names")
    seen.add(id(module))
    attributes = getattr(module, "attributes", {})
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
    for name, value in attributes.items():
        if isinstance(value, _Module):
            yield from _named_tensors(value, f"{prefix}{name}.", seen)
