"""The archive reader returns the same tensors as torch, and runs no code from the archive."""

import contextlib
import io
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refseg.errors import CheckpointError
from refseg.models.clip_archive import read_archive


class Cell(torch.nn.Module):
    """A convolution with lists among its attributes, one weight under two names, a number, and half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 1, bias=False).half()
        self.norm = torch.nn.BatchNorm2d(2)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.again = self.scale
        self.register_buffer("size", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) * self.scale


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "cell.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.script(Cell()).save(str(path))
    return path


def torchs_own(path: Path) -> dict[str, torch.Tensor]:
    """Read an archive by torch, which runs the archive's code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())


def rewrite(source: Path, path: Path, change: Callable[[str, bytes], bytes | None], *, deflate: str = "") -> Path:
    """Copy an archive; `change` returns the new bytes of an entry, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data, zipfile.ZIP_DEFLATED if deflate and name.endswith(deflate) else None)
    return path


def with_pickle(source: Path, path: Path, data: bytes) -> Path:
    return rewrite(source, path, lambda name, old: data if name.endswith("/data.pkl") else old)


@pytest.mark.parametrize("name", ["archive", "small_clip_archive"])
def test_the_tensors_are_torchs_own_bit_for_bit(request: pytest.FixtureRequest, name: str) -> None:
    path = request.getfixturevalue(name)
    expected = torchs_own(path)

    found = read_archive(path)

    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def test_half_precision_and_names_are_clips(small_clip_archive: Path) -> None:
    found = read_archive(small_clip_archive)

    assert found["visual.layer1.0.downsample.0.weight"].dtype == torch.float16
    assert found["transformer.resblocks.1.attn.in_proj_weight"].dtype == torch.float16
    assert found["visual.bn1.running_mean"].dtype == torch.float32


class _Runs:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("posix.system", lambda marker: _Runs(__import__("os").system, f"touch {marker}")),
        ("builtins.exec", lambda marker: _Runs(exec, f"open({str(marker)!r}, 'w').close()")),
        ("pathlib.PosixPath", lambda marker: _Runs(Path.touch, marker)),
        ("torch.serialization.save", lambda marker: _Runs(torch.save, 1, str(marker))),
    ],
)
def test_a_pickle_that_runs_code_is_refused_by_name_and_has_not_run(
    archive: Path, tmp_path: Path, named: str, make: Callable[[Path], Any], protocol: int
) -> None:
    marker = tmp_path / "ran"
    data = pickle.dumps(make(marker), protocol=protocol)
    # Python 2's names, which protocol 2 writes, are not mapped back.
    names = {named, named.replace("builtins", "__builtin__"), "pathlib.Path.touch", "pathlib.PosixPath"}
    names |= {"__builtin__.getattr", "builtins.getattr"} if "pathlib" in named else set()

    with pytest.raises(CheckpointError, match=r"its pickle asks for .*none of its code was run") as raised:
        read_archive(with_pickle(archive, tmp_path / "crafted.pt", data))

    assert any(f"asks for {name}," in str(raised.value) for name in names)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()  # the pickle runs the call where this is allowed


def test_names_below_an_allowed_one_are_refused(archive: Path, tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."

    with pytest.raises(CheckpointError, match=r"asks for collections\.OrderedDict\.fromkeys"):
        read_archive(with_pickle(archive, tmp_path / "crafted.pt", data))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(archive: Path, tmp_path: Path, share: float) -> None:
    data = archive.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])

    with pytest.raises(CheckpointError, match=r"cut\.pt: not a TorchScript archive, or a truncated or damaged one"):
        read_archive(tmp_path / "cut.pt")


def test_a_changed_weight_is_noticed_by_the_zips_checksum(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    weight = read_archive(archive)["conv.weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)

    with pytest.raises(CheckpointError, match=r"truncated or damaged one .*CRC"):
        read_archive(tmp_path / "flipped.pt")


def test_other_files_are_named(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: no such file; expected a TorchScript archive"):
        read_archive(tmp_path / "none.pt")

    with zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        other.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"found 0 entries NAME/data\.pkl in the zip, expected one"):
        read_archive(tmp_path / "other.pt")

    large = with_pickle(archive, tmp_path / "large.pt", b"." * ((16 << 20) + 1))
    with pytest.raises(CheckpointError, match=r"data\.pkl has 16777217 bytes, expected at most 16777216"):
        read_archive(large)


def test_missing_and_compressed_storages_are_refused(archive: Path, tmp_path: Path) -> None:
    gone = rewrite(archive, tmp_path / "gone.pt", lambda name, data: None if name.endswith("/data/0") else data)
    with pytest.raises(CheckpointError, match=r"no item named .*data/0"):
        read_archive(gone)

    short = rewrite(archive, tmp_path / "short.pt", lambda name, data: data[:-1] if name.endswith("/data/0") else data)
    with pytest.raises(CheckpointError, match=r"data/0 has \d+ bytes, expected"):
        read_archive(short)

    small = rewrite(archive, tmp_path / "small.pt", lambda name, data: data, deflate="/data/0")
    with pytest.raises(CheckpointError, match="data/0 is compressed"):
        read_archive(small)


class _Storage:
    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class _Pickler(pickle.Pickler):
    def persistent_id(self, found: Any) -> Any:
        return found.pid if isinstance(found, _Storage) else None


def module_pickle(monkeypatch: pytest.MonkeyPatch, fill: Callable[[Any, type], None]) -> bytes:
    """The pickle of a TorchScript module whose attributes `fill` sets."""
    fake = types.ModuleType("__torch__")
    fake.M = type("M", (), {"__module__": "__torch__", "__qualname__": "M"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__torch__", fake)
    root = fake.M()
    fill(root, fake.M)
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(root)
    return file.getvalue()


FLOATS = ("storage", torch.FloatStorage, "90", "cpu", 6)


@pytest.mark.parametrize(
    ("pid", "offset", "size", "stride", "message"),
    [
        (FLOATS, 0, (7,), (1,), "ends at element 6 of a storage of 6"),
        (FLOATS, 5, (2,), (1,), "ends at element 6 of a storage of 6"),
        (FLOATS, 0, (2, 3), (6, 1), "ends at element 8 of a storage of 6"),
        (FLOATS, -1, (2,), (1,), "offset -1"),
        (FLOATS, 3, (2,), (-1,), r"stride \(-1,\)"),
        (FLOATS, 0, (1 << 40,), (0,), r"a tensor of size \(1099511627776,\) over a storage of 6"),
        (FLOATS, 0, (2, 3), (1,), "a tensor of size"),
        (FLOATS, 0, (1,) * 9, (1,) * 9, "a tensor of size"),
        (FLOATS, 0, (True,), (1,), "a tensor of size"),
        (FLOATS, 0, [6], [1], "a tensor without storage, size and stride"),
        ((*FLOATS[:4], 7), 0, (6,), (1,), r"data/90 has 24 bytes, expected 7 elements of torch\.float32"),
        (("storage", torch.HalfStorage, "90", "cpu", 6), 0, (6,), (1,), "expected 6 elements of torch.float16"),
        (("storage", torch.FloatStorage, "../90", "cpu", 6), 0, (6,), (1,), "unknown kind of storage"),
        (("module", torch.FloatStorage, "90", "cpu", 6), 0, (6,), (1,), "unknown kind of storage"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    pid: Any, offset: Any, size: Any, stride: Any, message: str,
) -> None:  # fmt: skip
    def fill(root: Any, _module: type) -> None:
        root.weight = _Runs(torch._utils._rebuild_tensor_v2, _Storage(*pid), offset, size, stride, False, OrderedDict())

    data = module_pickle(monkeypatch, fill)
    crafted = with_pickle(archive, tmp_path / "crafted.pt", data)
    with zipfile.ZipFile(crafted, "a") as zipped:
        zipped.writestr("cell/data/90", torch.arange(6.0).numpy().tobytes())

    with pytest.raises(CheckpointError, match=message):
        read_archive(crafted)


def test_many_tensors_over_one_storage_are_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = ("storage", torch.FloatStorage, "90", "cpu", 50_000)

    def fill(root: Any, _module: type) -> None:
        for number in range(20):
            view = (_Storage(*pid), 0, (50_000,), (1,), False, OrderedDict())
            setattr(root, f"weight{number}", _Runs(torch._utils._rebuild_tensor_v2, *view))

    crafted = with_pickle(archive, tmp_path / "crafted.pt", module_pickle(monkeypatch, fill))
    with zipfile.ZipFile(crafted, "a") as zipped:
        zipped.writestr("cell/data/90", torch.zeros(50_000).numpy().tobytes())

    with pytest.raises(CheckpointError, match="its tensors need more bytes than the"):
        read_archive(crafted)


def test_a_view_of_a_storage_is_read_as_it_lies(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(root: Any, _module: type) -> None:
        root.weight = _Runs(torch._utils._rebuild_tensor_v2, _Storage(*FLOATS), 1, (2, 2), (1, 3), False, OrderedDict())

    crafted = with_pickle(archive, tmp_path / "crafted.pt", module_pickle(monkeypatch, fill))
    with zipfile.ZipFile(crafted, "a") as zipped:
        zipped.writestr("cell/data/90", torch.arange(6.0).numpy().tobytes())

    assert read_archive(crafted)["weight"].tolist() == [[1.0, 4.0], [2.0, 5.0]]


def test_modules_within_themselves_and_things_that_are_none_are_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(root: Any, module: type) -> None:
        root.child = module()
        root.child.parent = root

    circle = with_pickle(archive, tmp_path / "circle.pt", module_pickle(monkeypatch, fill))
    with pytest.raises(CheckpointError, match=r"the module child\.parent has two names"):
        read_archive(circle)

    plain = with_pickle(archive, tmp_path / "plain.pt", pickle.dumps({"weight": 1}, protocol=2))
    with pytest.raises(CheckpointError, match=r"data\.pkl holds a dict, not a module"):
        read_archive(plain)


def test_a_pickle_that_asks_for_much_memory_is_refused(archive: Path, tmp_path: Path) -> None:
    data = b"\x80\x02Nr\xff\xff\xff\xff."  # None, kept at place 4,294,967,295 of the memo

    with pytest.raises(CheckpointError, match="the pickle stores a value at the memo index 4294967295"):
        read_archive(with_pickle(archive, tmp_path / "crafted.pt", data))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), whole=st.booleans())
def test_damage_never_ends_in_another_error(archive: Path, tmp_path: Path, data: st.DataObject, whole: bool) -> None:
    with zipfile.ZipFile(archive) as zipped:
        content = bytearray(archive.read_bytes() if whole else zipped.read("cell/data.pkl"))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt"
    if whole:
        path.write_bytes(content)
    else:
        with_pickle(archive, path, bytes(content))

    with contextlib.suppress(CheckpointError):
        read_archive(path)
