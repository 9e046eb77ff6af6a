"""The options of a command, made from the dataclass or function that it calls, so that each is described once.

A parameter's name becomes the option, its annotation says how the text is read, and its entry in the Google docstring
(`Attributes:` or `Args:`) is the help. Defaults stay with the parameter: an option that is not given is not passed on.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from refseg.addresses import address_argument, path_argument


def add_options(
    parser: argparse.ArgumentParser,
    target: Callable[..., Any],
    *,
    positional: Collection[str] = (),
    leave_out: Collection[str] = (),
    prefix: str = "",
    **details: Mapping[str, Any],
) -> None:
    """Add an option for each parameter of a dataclass or function.

    Args:
        parser: The command's parser.
        target: The dataclass or function that the command calls with the options.
        positional: Parameters that are given without a flag.
        leave_out: Parameters that are not for the command line.
        prefix: Put before each name: `mask_` makes `--mask-threshold` of `threshold`.
        details: By parameter, what differs from what its annotation and description give: arguments of argparse's
            `add_argument`, such as `metavar` or another `default`, and `flag`, such as `--split` for `splits`.
    """
    hints = get_type_hints(target)
    described = descriptions(target)
    for name, parameter in inspect.signature(target).parameters.items():
        if name in leave_out:
            continue
        detail = dict(details.get(name, {}))
        default = detail.get("default", parameter.default)
        settings = _settings(hints[name], default, detail) | detail
        settings["help"] = settings.get("help", described.get(name, "") + _shown(default)).replace("%", "%%")
        flag = settings.pop("flag", f"--{'no-' * (default is True)}{prefix}{name}".replace("_", "-"))
        is_required = default is parameter.empty
        if name in positional:
            settings |= {} if is_required else {"nargs": "?"}
            parser.add_argument(prefix + name, **settings)
        else:
            parser.add_argument(flag, dest=prefix + name, **{"required": is_required, **settings})


def given(args: argparse.Namespace, target: Callable[..., Any], *, prefix: str = "") -> dict[str, Any]:
    """What the command line gives of a target's parameters, by name; lists as tuples.

    Args:
        args: As parsed by a parser to which `add_options` added the target's options.
        target: The dataclass or function.
        prefix: As `add_options` was told.
    """
    found = {
        name: getattr(args, prefix + name) for name in inspect.signature(target).parameters if prefix + name in args
    }
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, which every command that prints results knows."""
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")


def size(text: str) -> tuple[int, int]:
    """`480` or `320x480` as (height, width) in pixels."""
    if not (found := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected pixels, for example 480 or 320x480")
    return int(found[1]), int(found[2] or found[1])


def count_or_all(text: str) -> int | str:
    """A number, or "all"."""
    if text != "all" and not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number or all")
    return text if text == "all" else int(text)


_READINGS: dict[Any, dict[str, Any]] = {
    int: {"type": int, "metavar": "N"},
    float: {"type": float, "metavar": "X"},
    str: {"metavar": "NAME"},
    Path: {"type": path_argument, "metavar": "PATH"},
    Path | str: {"type": address_argument, "metavar": "DIR"},
    tuple[int, int]: {"type": size, "metavar": "HxW"},
    int | Literal["all"]: {"type": count_or_all, "metavar": "N"},
}
"""How argparse reads the text of a value, by the parameter's annotation."""


def _settings(hint: Any, default: Any, detail: Mapping[str, Any]) -> dict[str, Any]:
    """What argparse is told of an option that is left out of the result where it is not given."""
    if hint is bool:
        return {"default": argparse.SUPPRESS, "action": "store_false" if default else "store_true"}
    is_told = "type" in detail or "choices" in detail
    return {"default": argparse.SUPPRESS, **({} if is_told else _reading(hint))}


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads a parameter of this annotation."""
    if hint in _READINGS:
        return _READINGS[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"choices": parts}
    if origin in (Union, UnionType) and NoneType in parts:
        return _reading(Union[tuple(part for part in parts if part is not NoneType)])  # noqa: UP007  # of a tuple
    if (origin is tuple and parts[1:] == (...,)) or origin is Sequence:
        return {**_reading(parts[0]), "nargs": "+"}
    raise TypeError(f"no option is made of a parameter of type {hint}; give its type, or leave it out")


def _shown(default: object) -> str:
    """A default behind the help; that of a switch is clear from its name."""
    if isinstance(default, bool) or default in (inspect.Parameter.empty, None, "", ()):
        return ""
    shown = dict.fromkeys(default) if isinstance(default, tuple) else [default]  # a square of (480, 480) is 480
    return f" (default: {'x'.join(map(str, shown))})"


def descriptions(target: Callable[..., Any]) -> dict[str, str]:
    """The description of each parameter in the Google docstrings of a target and its bases, by name."""
    found: dict[str, str] = {}
    for documented in reversed(inspect.getmro(target)) if isinstance(target, type) else (target,):
        text = inspect.cleandoc(documented.__doc__ or "")
        section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n(?=    ))*)", text, re.MULTILINE)
        entries = re.split(r"^    (\w+): ", section[1] if section else "", flags=re.MULTILINE)[1:]
        found |= {name: _as_help(entry) for name, entry in zip(entries[::2], entries[1::2], strict=True)}
    return found


def _as_help(text: str) -> str:
    """A description as help is written: not as a sentence."""
    words = " ".join(text.split()).removesuffix(".")
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]  # JPEG stays JPEG
