"""Makes the options of a command from the dataclass or function that it calls, so that each is described only once.

A parameter's name becomes the option, its annotation determines how the text is parsed, and its entry in the Google
docstring (`Attributes:` or `Args:`) becomes the help. An option that is not given is not passed on, so that the
parameter's own default applies.
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
        positional: Parameters that become positional arguments.
        leave_out: Parameters that are not offered on the command line.
        prefix: Prefix of each name: `mask_` makes `--mask-threshold` of `threshold`.
        details: By parameter: settings that replace those from its annotation and description. They are arguments of
            argparse's `add_argument`, such as `metavar` or `default`, and `flag`, such as `--split` for `splits`.
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
    """Return the target's parameters that were given on the command line, by name; lists become tuples.

    Args:
        args: Result of a parser to which `add_options` has added the target's options.
        target: The dataclass or function.
        prefix: The same prefix as for `add_options`.
    """
    found = {
        name: getattr(args, prefix + name) for name in inspect.signature(target).parameters if prefix + name in args
    }
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, which all commands that print results have."""
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")


def size(text: str) -> tuple[int, int]:
    """Parse `480` or `320x480` as (height, width) in pixels."""
    if not (found := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected pixels, for example 480 or 320x480")
    return int(found[1]), int(found[2] or found[1])


def count_or_all(text: str) -> int | str:
    """Parse a number from 1, or the word `all`."""
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
"""Settings with which argparse parses a value, by the parameter's annotation."""


def _settings(hint: Any, default: Any, detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return argparse's settings for an option that is missing in the result if it is not given."""
    if hint is bool:
        return {"default": argparse.SUPPRESS, "action": "store_false" if default else "store_true"}
    is_told = "type" in detail or "choices" in detail
    return {"default": argparse.SUPPRESS, **({} if is_told else _reading(hint))}


def _reading(hint: Any) -> dict[str, Any]:
    """Return argparse's settings for a parameter with this annotation."""
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
    """Return a default as the end of a help text; empty for a switch, whose default is clear from its name."""
    if isinstance(default, bool) or default in (inspect.Parameter.empty, None, "", ()):
        return ""
    shown = dict.fromkeys(default) if isinstance(default, tuple) else [default]  # a square of (480, 480) is 480
    return f" (default: {'x'.join(map(str, shown))})"


def descriptions(target: Callable[..., Any]) -> dict[str, str]:
    """Return the descriptions of parameters in the Google docstrings of a target and its base classes, by name."""
    found: dict[str, str] = {}
    for documented in reversed(inspect.getmro(target)) if isinstance(target, type) else (target,):
        text = inspect.cleandoc(documented.__doc__ or "")
        section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n(?=    ))*)", text, re.MULTILINE)
        entries = re.split(r"^    (\w+): ", section[1] if section else "", flags=re.MULTILINE)[1:]
        found |= {name: _as_help(entry) for name, entry in zip(entries[::2], entries[1::2], strict=True)}
    return found


def _as_help(text: str) -> str:
    """Return a description in the form of a help text: in lower case and without a full stop."""
    words = " ".join(text.split()).removesuffix(".")
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]  # JPEG stays JPEG
