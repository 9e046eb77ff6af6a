"""What a user asks of `refseg quickstart`, `models`, `predict` and `demo`. No torch: a command's help stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from refseg.errors import UsageError
from refseg.model_config import MODEL_CONFIGS, ImageEncoderName
from refseg.wording import did_you_mean

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Addresses that only this machine can reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartOptions:
    """How large the quickstart is, and where it writes.

    Attributes:
        out: Folder for everything that is written.
        num_images: Scenes to draw. With few scenes it is quick, and the model learns little.
    """

    out: Path = Path("quickstart")
    num_images: int = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """The models whose costs are to be counted.

    Attributes:
        input_sizes: Sides of the square input in pixels, multiples of 32.
        models: Architectures to count; by default all.
        encoders: Image encoders to count; by default all.
        num_tokens: Token ids of a sentence.

    Raises:
        UsageError: If a size or number is out of range, or a name is unknown.
    """

    input_sizes: tuple[int, ...] = (480,)
    models: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    num_tokens: int = 17

    def __post_init__(self) -> None:
        for side in self.input_sizes:
            if side < 32 or side % 32:
                raise UsageError(f"--input-size: found {side}, expected a multiple of 32, such as 480")
        if not 3 <= self.num_tokens <= 77:
            raise UsageError(f"--num-tokens: found {self.num_tokens}, expected 3 to 77")
        for flag, chosen, known in (
            ("--model", self.models, tuple(MODEL_CONFIGS)),
            ("--encoder", self.encoders, get_args(ImageEncoderName)),
        ):
            if unknown := [name for name in chosen if name not in known]:
                hint = did_you_mean(unknown[0], known)
                raise UsageError(f"{flag}: found {unknown[0]}, expected some of {', '.join(known)}{hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """Pictures, what to find in each of them, and where the results go.

    Attributes:
        images: Pictures of any kind that Pillow reads, folders of them, and URLs of either; a picture is turned upright
            as its EXIF data say.
        texts: What to find in each picture; several texts share one pass over a picture.
        checkpoint: A run's folder, a checkpoint's, or what `refseg publish` wrote.
        out: Folder to write to; results are named after the picture, and a name that holds another result is never
            replaced: the next free number is taken.
        explain: Also write what the model attended to: words by attention, weights of the emphases, heat maps.
    """

    images: tuple[Path | str, ...]
    texts: tuple[str, ...]
    checkpoint: Path
    out: Path = Path("predictions")
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """A model, and the address at which its web page is served.

    Attributes:
        checkpoint: A run's folder, a checkpoint's, or what `refseg publish` wrote.
        host: Address to listen on. The default accepts connections of this machine only, 0.0.0.0 of every host that
            can reach it.
        port: Port to listen on; 0 takes a free one.
        data: The dataset's folder or URL, whose validation split gives the first examples (default: that of the
            recipe).

    Raises:
        UsageError: If there is no such port.
    """

    checkpoint: Path
    host: str = "127.0.0.1"
    port: int = 8000
    data: Path | str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port {self.port}: expected 0 to 65535")

    @property
    def allowed_hosts(self) -> list[str]:
        """Names that are accepted in a request's Host header."""
        if self.host in ("0.0.0.0", "::"):
            return ["*"]  # the names by which other hosts reach this machine are not known
        named = {self.host, *LOOPBACK} if self.host in LOOPBACK else {self.host}
        return sorted(f"[{name}]" if ":" in name else name for name in named)
