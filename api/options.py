"""Command-line flags and config files, derived from the config structs.

A flag is a struct's field: its name, type, default and the docstring under it. A TOML file takes
the same keys, with dashes or underscores; the command line wins over the file.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from engine.client import ConfigError

Config = TypeVar("Config", bound=msgspec.Struct)

OTHER = "other options"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
METAVARS = {
    "_bytes": "SIZE",
    "_s": "SECONDS",
    "_tokens": "TOKENS",
    "_len": "TOKENS",
    "_file": "FILE",
    "_dir": "DIR",
    "_endpoint": "URL",
}
"""How a field's name ends -> what its value is called in the help."""
_SIZE = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*([kmg]i?)?b?")


def add_options(
    parser: argparse.ArgumentParser,
    structs: Sequence[type[msgspec.Struct]],
    groups: Mapping[str, Sequence[str]],
) -> None:
    """Adds one flag per field, under the group that lists the field, and --config."""
    fields = {field.name: field for struct in structs for field in msgspec.structs.fields(struct)}
    hints = {name: hint for struct in structs for name, hint in get_type_hints(struct).items()}
    docs = {name: doc for struct in structs for name, doc in field_docs(struct).items()}
    listed = {name for names in groups.values() for name in names}
    unlisted = [name for name in fields if name not in listed]
    for title, names in {**groups, OTHER: unlisted}.items():
        present = [name for name in names if name in fields]
        if present:
            group = parser.add_argument_group(title)
            for name in present:
                default = fields[name].default
                _add_flag(group, name, hints[name], default, docs.get(name, ""))
    parser.add_argument_group("configuration").add_argument(
        "--config",
        metavar="FILE",
        help="TOML file with the same keys as these options; the command line wins.",
    )


def read_values(
    arguments: argparse.Namespace, structs: Sequence[type[msgspec.Struct]]
) -> dict[str, Any]:
    """Returns field -> value of what the command line says, else the file; see :func:`build`.

    Raises ConfigError for a file that cannot be read or an unknown key.
    """
    values = _read_file(arguments.config) if arguments.config else {}
    known = {name for struct in structs for name in struct.__struct_fields__}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"{arguments.config}: unknown key {unknown[0]!r}")
    return values | {name: value for name, value in vars(arguments).items() if name in known}


def build(struct: type[Config], values: Mapping[str, Any]) -> Config:
    """Returns the struct with its own fields out of `values`, defaults for the rest.

    Raises ConfigError naming the flag of a value of the wrong type or out of range.
    """
    own = {name: value for name, value in values.items() if name in struct.__struct_fields__}
    try:
        return msgspec.convert(own, struct)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        flag = f"--{path.rstrip('`').replace('_', '-')}: " if path else ""
        raise ConfigError(f"{flag}{text}") from error


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wide enough for a flag and one line about it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def field_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Returns field -> the docstring under it, as one line."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = " ".join(doc.split())
    return docs


def parse_bytes(text: str) -> int:
    """Returns a size in bytes: `1048576`, `16MiB`, `4G`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1048576, 16MiB or 4GiB")
    return int(float(match[1]) * UNITS[(match[2] or "").lower()])


def show_bytes(size: int) -> str:
    """Returns a size for people: `656 B`, `16 MiB`, `1.5 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def _add_flag(group: argparse._ArgumentGroup, name: str, hint: Any, default: Any, doc: str) -> None:
    flag = "--" + name.replace("_", "-")
    # None has no way to be written on a command line: it is what leaving the flag out means.
    text = doc.replace("None:", "default:").replace("%", "%%")
    shown = _show_default(name, default)
    if shown:
        text = f"{text.rstrip('.')} (default: {shown})."
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    kind = _without_none(hint)
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif get_origin(kind) is Literal:
        choices = get_args(kind)
        if len(choices) > 3:  # too wide for the column of flags
            options["help"] = f"{' | '.join(choices)}. {text}"
            options["metavar"] = "TYPE" if name.endswith("dtype") else "LEVEL"
        group.add_argument(flag, choices=choices, **options)
    elif get_origin(kind) is tuple:
        group.add_argument(flag, nargs="+", metavar="NAME", **options)
    else:
        group.add_argument(
            flag,
            type=parse_bytes if name.endswith("_bytes") else kind,
            metavar=_metavar(name, kind),
            **options,
        )


def _show_default(name: str, default: Any) -> str:
    if default is None or default in ("", ()):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"{default:g}"
    return show_bytes(default) if name.endswith("_bytes") else str(default)


def _metavar(name: str, kind: type) -> str:
    for suffix, metavar in METAVARS.items():
        if name.endswith(suffix):
            return metavar
    return {int: "N", float: "X"}.get(kind, name.upper())


def _without_none(hint: Any) -> Any:
    """`int | None` -> `int`."""
    if get_origin(hint) in (Union, UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _read_file(file: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(Path(file).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {file} cannot be read: {error}") from error
    try:
        return {
            (name := key.replace("-", "_")): parse_bytes(value)
            if name.endswith("_bytes") and isinstance(value, str)
            else value
            for key, value in values.items()
        }
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--config {file}: {error}") from error
