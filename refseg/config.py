"""Recipes: the typed settings of a run, read from TOML. An error lists every mistake of a recipe with its key path."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from refseg.addresses import local_path
from refseg.errors import RecipeError
from refseg.model_config import (
    MODEL_CONFIGS,
    Address,
    Count,
    CRFormerConfig,
    FieldsAbove,
    ModelConfig,
    Natural,
    Section,
)
from refseg.reading import ReadingOptions
from refseg.wording import closest, did_you_mean

Precision = Literal["no", "bf16", "fp16"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "swanlab", "trackio"]


def _as_size(value: object) -> object:
    if isinstance(value, list | tuple):
        return value  # pydantic checks the two sides one by one
    if type(value) is not int or value < _STRIDE or value % _STRIDE:
        raise ValueError(f"found {_as_toml(value)}; expected a positive multiple of {_STRIDE}, or a list of two")
    return (value, value)


_STRIDE = 32
"""Stride of the coarsest feature map in pixels; each side of the input is a multiple of it."""
Side = Annotated[int, Field(ge=_STRIDE, multiple_of=_STRIDE, strict=True)]
Size = Annotated[tuple[Side, Side], Field(strict=False), BeforeValidator(_as_size)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class _DatasetNames:
    """The datasets and splits that a run trains on and validates on.

    Attributes:
        root: Folder or URL of a dataset that `refseg build-shards` built; a relative path starts at the working
            directory of the run.
        train_split: Split to train on.
        val_split: Split to validate on during training.
        val_root: Folder or URL of the dataset that has `val_split`; empty: `root`. A mix needs it, because a mix has
            only the split `train`.
    """

    root: Address
    train_split: str = "train"
    val_split: str = "val"
    val_root: Address = ""


_AS_A_SECTION = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
"""This configuration is not `strict`, because pydantic would then refuse a TOML table where a dataclass is expected.
The annotations of the numbers are strict instead."""


@pydantic_dataclass(frozen=True, kw_only=True, config=_AS_A_SECTION)
class DataConfig(ReadingOptions, _DatasetNames):
    """The dataset, and how a sample becomes network input; extends `refseg.reading.ReadingOptions`.

    Attributes:
        input_size: Height and width of the network's input in pixels, multiples of 32; one number means a square.
    """

    input_size: Size = (480, 480)
    num_tokens: Annotated[int, Field(ge=3, le=77, strict=True)] = 17
    num_workers: Natural = 2

    @field_validator("expressions_per_image")
    @classmethod
    def _check_expressions(cls, value: int | str, info: FieldsAbove) -> int | str:
        sampling = info.data.get("sampling", "images")
        if sampling != "images" and value != 1:
            raise ValueError(f'has an effect only with sampling = "images", not {sampling!r}')
        return value

    @field_validator("cache_gigabytes")
    @classmethod
    def _check_cache(cls, value: float, info: FieldsAbove) -> float:
        if value and info.data.get("decode") == "device":
            raise ValueError(
                f'found {value:g}, but decode = "device" cannot fill the cache of decoded images: set this to 0, or '
                'decode = "cpu"'
            )
        return value


class TrainConfig(Section):
    """How the model is trained; the defaults are those of the FCNet paper."""

    epochs: Count = 50
    """Number of epochs; `data.sampling` defines what an epoch is."""
    max_steps: Count | None = None
    """Stop after this number of optimiser steps, even within an epoch; absent: `epochs` decides."""
    global_batch: Count = 64
    """Samples per optimiser step over all processes: images with `data.sampling = "images"`, else expressions."""
    accumulate_steps: Count = 1
    """Split each process's share of a batch into this many parts, to save memory; the optimiser step is unchanged."""
    dice_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a Dice loss added to the cross-entropy; the paper uses none."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam` adds `weight_decay` to the gradient, `adamw` subtracts it from the weights (decoupled decay)."""
    lr: Rate = 1e-4
    """Learning rate of all weights outside the pretrained backbone."""
    backbone_lr_scale: Annotated[float, Field(ge=0)] = 0.1
    """Learning rate of the backbone as a fraction of `lr`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay; it is not applied to norms and biases."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """`multistep` multiplies by `gamma` at each milestone, `cosine` falls to zero at the last step."""
    milestones: Annotated[tuple[Count, ...], Field(strict=False)] = (35,)
    """Epochs after which the rate is multiplied by `gamma`: (35,) means from the 36th epoch on."""
    gamma: Rate = 0.1
    """Factor of the learning rate at each milestone."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly to its value."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the whole gradient; 0: no clipping."""
    divergence_factor: Annotated[float, Field(ge=0)] = 10.0
    """Stop the run if the loss exceeds this multiple of the first logged loss (at least 1); 0: only if it is NaN."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Average the weights with this decay per step, and validate and keep the average; 0: no averaging."""
    precision: Precision = "no"
    """Autocast on a GPU; refused on a CPU, where bf16 is 20 to 30 times slower than float32."""
    compile: bool = False
    """Compile the image side and the decoder with `torch.compile`; needs a C++ compiler and minutes at the start."""
    batchnorm: Literal["local", "sync", "frozen"] = "local"
    """Batch statistics: per process, over all GPUs, or frozen as loaded (scale and shift are still trained)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of samples and dropout."""
    init_from: Address = ""
    """A trained model to start from: folder of a run, a checkpoint or a published model; empty: no trained model."""
    log_every_steps: Count = 10
    """Steps between two lines of the log and of `metrics.jsonl`."""
    checkpoint_every_steps: Count = 500
    """Steps between two checkpoints; the last step always writes one."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep; the best by validation is kept in addition."""
    val_every_epochs: Natural = 1
    """Epochs between two validations; 0: none."""
    val_images: Natural = 0
    """Number of images to validate on, the same ones in every run; 0: all. A subset gives less exact scores."""
    patience: Natural = 0
    """Stop after this number of validations without an improvement; 0: train to the end."""
    trackers: Annotated[tuple[Tracker, ...], Field(strict=False)] = ("tensorboard",)
    """Experiment trackers besides `metrics.jsonl`, by Accelerate's names; some need a login."""

    @field_validator("patience")
    @classmethod
    def _check_patience(cls, value: int, info: FieldsAbove) -> int:
        if value and info.data.get("val_every_epochs") == 0:
            raise ValueError("counts validations, but val_every_epochs is 0: set val_every_epochs, or leave this out")
        return value


class EvalConfig(Section):
    """How masks are scored, in validation and by `refseg evaluate`."""

    protocol: Literal["original", "cris", "lavt", "lisa", "rela"] = "original"
    """Evaluation protocol of `refseg.evaluation.protocols`: it sets mask size, threshold and comparison."""
    images_per_batch: Count = 8
    """Number of images encoded at once; each is encoded once for all its sentences."""


class Recipe(Section):
    """All settings that a run depends on, except its output folder."""

    model: ModelConfig
    """Section `[model]`: the network."""
    data: DataConfig
    """Section `[data]`: the dataset and how it is read."""
    train: TrainConfig = TrainConfig()
    """Section `[train]`: the optimisation."""
    eval: EvalConfig = EvalConfig()
    """Section `[eval]`: the evaluation."""

    @field_validator("data")
    @classmethod
    def _check_tokens(cls, value: DataConfig, info: FieldsAbove) -> DataConfig:
        # The section is absent if it holds a mistake; this check then runs once that mistake is corrected.
        model = info.data.get("model")
        if (
            isinstance(model, CRFormerConfig)
            and model.reconstruction_weight
            and value.num_tokens > model.reconstruction_positions
        ):
            raise ValueError(
                f"num_tokens {value.num_tokens} is more than model.reconstruction_positions "
                f"{model.reconstruction_positions}: the model cannot reconstruct longer sentences"
            )
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types, nested by section; `make_recipe` accepts them."""
        settings: dict[str, Any] = json.loads(self.model_dump_json())
        return settings


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `--set` overrides to it.

    A recipe that begins with `extends = "NAME"` states only what differs from another recipe. `NAME` is a shipped
    recipe or a file in the same folder.

    Args:
        path_or_name: Path of a TOML file, or name of a shipped recipe such as `toy`.
        overrides: Texts of the form `section.key=value`. The value is TOML; a bare word is taken as a string.

    Raises:
        RecipeError: If the file does not exist, is not TOML or extends itself, or if keys or values are wrong. All
            wrong keys and values are listed.
    """
    path = _find(path_or_name)
    settings = _read(path, extended_by=())
    for override in overrides:
        _apply(settings, override)
    return make_recipe(settings, where=str(path))


def make_recipe(settings: Mapping[str, Any], *, where: str) -> Recipe:
    """Check settings and return them as a recipe.

    Args:
        settings: Settings nested by section, as `Recipe.to_dict` returns them.
        where: Source of the settings, such as a path, for the message.

    Raises:
        RecipeError: If a key is unknown or missing, or a value is wrong. The message has a line for each mistake.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        mistakes = _describe_all(error)
        raise RecipeError(
            f"{where}: found {len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in the recipe\n"
            + "\n".join(f"  {mistake}" for mistake in mistakes)
        ) from error


def recipe_differences(first: Recipe, second: Recipe) -> list[str]:
    """List the key paths whose values differ, for example `train.lr`, in the order of the sections."""
    a, b = first.to_dict(), second.to_dict()
    return [
        f"{section}.{key}"
        for section in a
        for key in dict.fromkeys((*a[section], *b[section]))
        if (key in a[section], a[section].get(key)) != (key in b[section], b[section].get(key))
    ]


def recipe_names() -> list[str]:
    """List the names of the recipes that come with the package, sorted."""
    return sorted(Path(entry.name).stem for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def _read(path: Path, *, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """Read the settings of a file and merge them over those of the recipe that it extends."""
    if path.resolve() in extended_by:
        chain = " extends ".join(other.name for other in (*extended_by, path))
        raise RecipeError(f"{path}: found a recipe that extends itself ({chain}); remove `extends` from one of them")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except _NOT_TOML as error:
        raise RecipeError(f"{path}: not a TOML file ({error})") from error
    base = settings.pop("extends", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise RecipeError(f'{path}: found extends = {base!r}, expected the name of one recipe, such as "toy"')
    beside = path.parent / base
    try:
        found = _find(beside if beside.is_file() else base)
    except RecipeError as error:
        raise RecipeError(f"{path}: extends {error}") from error
    merged = _read(found, extended_by=(*extended_by, path.resolve()))
    for section, values in settings.items():
        both = isinstance(values, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **values} if both else values
    return merged


_NOT_TOML = (ValueError, RecursionError)
"""Errors of `tomllib`. Its own error, a wrong encoding and numbers of thousands of digits raise ValueErrors; lists that
are nested too deeply raise a RecursionError."""


def _shipped() -> Path:
    return Path(str(resources.files("refseg.configs")))


def _find(path_or_name: str | Path) -> Path:
    path = local_path(path_or_name)
    if path.is_file():
        return path
    shipped = _shipped() / f"{path_or_name}.toml"
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    known = recipe_names()
    hint = did_you_mean(path.name.removesuffix(".toml"), known)
    raise RecipeError(f"{path_or_name}: no such recipe; expected a TOML file or one of {', '.join(known)}{hint}")


def _apply(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: expected section.key=value, for example train.lr=3e-5")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except _NOT_TOML:
        parsed = {"value": text.strip()}  # a bare word: --set data.root=shards/toy
    if len(parsed) > 1:
        raise RecipeError(
            f"--set {override}: found {len(parsed)} settings, expected one; give each setting as a separate argument"
        )
    value = parsed["value"]
    for key in keys[:-1]:
        inner = settings.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {key} is a value, not a section")
        settings = inner
    settings[keys[-1]] = value


_SAME_START = re.compile(r"^(input should be|expected) ")


def _describe_all(error: ValidationError) -> list[str]:
    found: dict[str, str] = {}
    for mistake in error.errors(include_url=False):
        subject, _, expected = _describe(mistake).partition("; ")
        # For a key that accepts two types pydantic reports two errors, which become one line here.
        found[subject] = f"{found[subject]}, or {_SAME_START.sub('', expected)}" if subject in found else expected
    return [f"{subject}; {expected}" if expected else subject for subject, expected in found.items()]


_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "model_type": "a section",
    "dataclass_type": "a section",
}
"""The expected type in TOML's terms, by pydantic's name of the error."""
_UNQUOTED = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false", re.IGNORECASE)


def _describe(mistake: Mapping[str, Any]) -> str:
    location: tuple[int | str, ...] = mistake["loc"]
    shown = location[:1] + location[2:] if location[:1] == ("model",) else location  # without the architecture's tag
    path = ".".join(str(part) for part in shown if not str(part).startswith(("constrained-", "literal[", "tuple[")))
    kind = mistake["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(location[:-1])
        close = closest(str(location[-1]), known)
        hint = f"did you mean {close}?" if close else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    if kind == "unknown_model":
        if not isinstance(mistake["input"], dict):
            expected = f"expected a section; its model is named by model.name, one of {', '.join(MODEL_CONFIGS)}"
            return f"model: found {_as_toml(mistake['input'])}; {expected}"
        found = mistake["input"].get("name")
        return f"model.name: found {_as_toml(found)}; {mistake['msg']}{did_you_mean(str(found), MODEL_CONFIGS)}"
    message = mistake["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # raised by a validator of this project, whose message names the other keys
        return f"{path}: {message}"
    found = mistake["input"]
    value = _as_toml(found)
    if kind in _TYPES:
        quoted = kind != "string_type" and isinstance(found, str) and _UNQUOTED.fullmatch(found)
        return f"{path}: found {value}; expected {_TYPES[kind]}{' (without quotes)' if quoted else ''}"
    return f"{path}: found {value}; {message[0].lower()}{message[1:]}"


_SHOWN = 200
"""Number of characters of a value that a message shows."""


def _as_toml(value: object) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """List the keys of the section at a location of pydantic's error."""
    section: Any = Recipe
    for depth, part in enumerate(location):
        if part in MODEL_CONFIGS and depth == 1:
            section = MODEL_CONFIGS[str(part)]
            continue
        annotation = section.model_fields[str(part)].annotation
        if is_dataclass(annotation) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            section = annotation
    return [field.name for field in fields(section)] if is_dataclass(section) else list(section.model_fields)
