"""Generates the page of recipes from the typed configuration and from the headers of the shipped recipes."""

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from docs_commands import cell

from refseg.cli.options import descriptions
from refseg.config import DataConfig, Recipe, recipe_names
from refseg.model_config import MODEL_CONFIGS

_SECTIONS = {"data": "DataConfig", "train": "TrainConfig", "eval": "EvalConfig"}
_HEAD = re.compile(r"(?m)^# (\w[\w ]*): +(.*(?:\n# {4,}.*)*)")
"""Pattern of a field of a recipe's header, such as `# Score: ...`, with the lines that continue it."""


def recipes_page() -> str:
    """Return the page as Markdown.

    It lists the keys of each section with values, default and meaning, and then the recipes.
    """
    definitions = Recipe.model_json_schema()["$defs"]
    models = {name: definitions[model.__name__]["properties"] for name, model in MODEL_CONFIGS.items()}
    first = next(iter(models.values()))
    common = [key for key in first if key != "name" and all(key in keys for keys in models.values())]
    parts = [
        "# Recipes",
        "A recipe is a TOML file with the sections `[model]`, `[data]`, `[train]` and `[eval]`. `refseg/train.py` "
        "takes its path, or the name of one that comes with the package; `--set section.key=value` overrides single "
        'keys. A recipe that begins with `extends = "NAME"` states only what differs from that recipe. Unknown keys '
        "and values of another type are refused, all mistakes at once. This page is generated from `refseg/config.py` "
        "and `refseg/model_config.py` at each build of the site.",
        "A complete recipe can be short, because all other keys have defaults:",
        '```toml\n[model]\nimage_encoder = "tiny"\nrandom_start = true\n\n[data]\nroot = "shards/toy"\n```',
        "## Shipped recipes",
        "\n".join(_shipped_rows()),
        "## [model]",
        "`name` chooses the architecture: `fcnet` (the default), `crformer`, `lts` or `cris`. All have these keys:",
        _table("model", {key: first[key] for key in common}, required=("image_encoder",)),
    ]
    for name, keys in models.items():
        own = {key: value for key, value in keys.items() if key not in common and key != "name"}
        differing = {key: keys[key] for key in common if keys[key].get("default") != first[key].get("default")}
        parts.append(f'### name = "{name}"')
        parts.append(cell(MODEL_CONFIGS[name].__doc__ or ""))
        if own or differing:
            parts.append(_table("model", {**own, **differing}, required=()))
        else:
            parts.append("It has no keys of its own.")
    for section, class_name in _SECTIONS.items():
        definition = definitions[class_name]
        parts += [f"## [{section}]", definition["description"].partition("\n")[0]]
        keys = definition["properties"]
        if section == "data":  # a dataclass, which describes its attributes in its docstring
            described = descriptions(DataConfig)
            keys = {
                key: {**schema, "description": described[key][:1].upper() + described[key][1:]}
                for key, schema in keys.items()
            }
        parts.append(_table(section, keys, required=definition.get("required", ())))
    return "\n\n".join(parts) + "\n"


def _table(section: str, keys: Mapping[str, Mapping[str, Any]], *, required: tuple[str, ...]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, schema in keys.items():
        default = "required" if key in required else f"`{_toml(schema.get('default'))}`"
        default = "absent" if default == "`None`" else default
        lines.append(f"| `{section}.{key}` | {cell(_values(schema))} | {default} | {cell(schema['description'])} |")
    return "\n".join(lines)


def _values(schema: Mapping[str, Any]) -> str:
    """Describe the type and limits of a key, or list the allowed values."""
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{_toml(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(_values(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    kind = schema["type"]
    if kind == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        one = _values(items)
        return (
            f"a list of two, each {one}; or one number for both" if "prefixItems" in schema else f"a list; each: {one}"
        )
    words = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    limits = [
        f"{sign} {schema[name]:g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in schema and schema[name] < 2**62
    ]
    if "multipleOf" in schema:
        limits.append(f"a multiple of {schema['multipleOf']}")
    return ", ".join([words[kind], *limits])


def _toml(value: object) -> str:
    """Return a value in TOML, as a recipe writes it."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shipped_rows() -> Iterator[str]:
    yield "| recipe | what it trains | hardware | score of its source |"
    yield "|---|---|---|---|"
    for name in recipe_names():
        text = (resources.files("refseg.configs") / f"{name}.toml").read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        head = {key: re.sub(r"\s*\n#\s+", " ", value) for key, value in _HEAD.findall(text)}
        yield f"| `{name}` | {cell(title)} | {cell(head.get('Hardware', ''))} | {cell(head.get('Score', ''))} |"
