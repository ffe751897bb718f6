"""Command-line flags from a dataclass: one field, one flag, documented by the string below it."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

__all__ = [
    "GROUPS",
    "REQUIRED",
    "Parser",
    "build",
    "field_help",
    "flag",
    "option",
    "parse",
    "unknown",
]

# The headings of a help text, the most common first. A field without `flag` is an option.
GROUPS = (
    *("options", "data", "curves", "noise", "network", "training"),
    *("sampling", "evaluation", "output", "advanced"),
)
REQUIRED = dataclasses.MISSING
_WIDTH = 100


def flag(
    default: Any, group: str = "options", *, positional: bool = False, kw_only: bool = False
) -> Any:
    """Return a dataclass field that a command's help lists under `group`.

    Args:
      default: the default value, or REQUIRED.
      group: one of GROUPS.
      positional: whether the value may also be given without its flag.
      kw_only: as in `dataclasses.field`; needed for REQUIRED after fields with defaults.

    Raises:
      ValueError: an unknown group.
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {group!r}.")
    metadata = {"group": group, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata, kw_only=kw_only)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises a one-line ValueError where argparse prints and exits."""

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError with `message`, which starts with the flag."""
        message = message.removeprefix("argument ").replace(": ", " ", 1)
        raise ValueError(f"{message.replace(' expected ', ' needs ', 1).rstrip('.')}.")


def parse(
    config: type,
    arguments: Sequence[str],
    prog: str,
    *,
    presets: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
) -> tuple[Any, set[str]]:
    """Return a configuration and the names of the fields and switches that the arguments set.

    Args:
      config: a dataclass whose docstring describes the command.
      arguments: the command line, without the program's name.
      prog: what the user typed to start the program.
      presets: configurations by name. If given, the first argument chooses the defaults.
      about: one sentence about each preset.
      switches: further flags, without values and not fields of `config`, and their help.

    Raises:
      ValueError: an unknown or missing flag, or a value of the wrong type.
      SystemExit: after --help.
    """
    arguments, base = list(arguments), None
    if presets is not None:
        name, *arguments = _check_preset(config, arguments, prog, presets, about or {})
        base, prog = presets[name], f"{prog} {name}"
    switches = switches or {}
    values, extra = build(config, prog, base, switches).parse_known_args(_with_dashes(arguments))
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
    }
    positional = _positional(config)
    if positional and extra and not extra[0].startswith("-"):
        if positional in given:
            raise ValueError(f"{option(positional)} is given twice.")
        given[positional] = extra.pop(0)
    if extra:
        names = [option(name) for name in (*(f.name for f in _fields(config)), *switches)]
        raise ValueError(unknown(extra[0], names))
    chosen = {name: value for name, value in given.items() if name not in switches}
    if base is not None:
        return dataclasses.replace(base, **chosen), set(given)
    for field in _fields(config):
        if field.default is REQUIRED and field.name not in given:
            place = field.name.upper() if field.name == positional else option(field.name)
            raise ValueError(f"{place} is required.")
    return config(**chosen), set(given)


def build(
    config: type, prog: str, base: Any = None, switches: Mapping[str, str] | None = None
) -> Parser:
    """Return a parser of a configuration's flags, in groups, with the defaults of `base`."""
    positional = _positional(config)
    place = f" [{positional.upper()}]" if positional else ""
    parser = Parser(
        prog=prog,
        usage=f"{prog}{place} [flags]",
        description=_plain(config.__doc__),
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    kinds, texts = typing.get_type_hints(config), field_help(config)
    for heading in GROUPS:
        group = parser.add_argument_group(heading)
        for field in _fields(config):
            if field.metadata.get("group", GROUPS[0]) != heading:
                continue
            default = field.default if base is None else getattr(base, field.name)
            text = [texts.get(field.name, "")]
            if default not in (None, (), ""):  # a preset's default, not the one in the text
                text = [re.sub(r"; default: .*", ".", text[0])]
            if field.name == positional:
                text.append(f"May be given without {option(positional)}.")
            if default is REQUIRED:
                text.append("(required)")
            elif default not in (None, (), ""):
                text.append(f"(default: {_shown(default)})")
            group.add_argument(
                option(field.name),
                dest=field.name,
                help=" ".join(text).replace("%", "%%"),
                **_reader(kinds[field.name]),
            )
    for name, text in (switches or {}).items():
        group.add_argument(option(name), action="store_true", default=argparse.SUPPRESS, help=text)
    group.add_argument("-h", "--help", action="help", help="Show this text.")
    return parser


def option(name: str) -> str:
    """Return the flag of a field: --num-train for num_train."""
    return f"--{name.replace('_', '-')}"


def field_help(config: type) -> dict[str, str]:
    """Return the documentation of each field of a dataclass: the string below it."""
    texts = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, below in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[node.target.id] = " ".join(str(below.value.value).split())
    return texts


def unknown(text: str, names: Sequence[str], kind: str = "flag") -> str:
    """Return the message for an unknown name, which suggests the most similar known one."""
    if kind == "flag" and not text.startswith("-"):
        return f"unexpected argument {text!r}."
    close = difflib.get_close_matches(text.partition("=")[0], names, n=1)
    return f"unknown {kind} {text!r}{f'; did you mean {close[0]}?' if close else '.'}"


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=_WIDTH)


def _fields(config):
    return [field for field in dataclasses.fields(config) if field.init]


def _positional(config):
    """The name of the field that the command also takes without its flag, or None."""
    return next((f.name for f in _fields(config) if f.metadata.get("positional")), None)


def _check_preset(config, arguments, prog, presets, about):
    """Return the arguments after checking that the first names a preset, or print the help."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            width = max(map(len, presets))
            lines = [f"  {name:{width}}  {about.get(name, '')}" for name in presets]
            print(f"usage: {prog} PRESET [flags]\n\n{_plain(config.__doc__)}\n\npresets:")
            print("\n".join(lines), f"\n\n{prog} PRESET --help lists the flags.", sep="")
            raise SystemExit(0)
        raise ValueError(f"PRESET is required: one of {', '.join(presets)}.")
    if arguments[0] not in presets:
        raise ValueError(unknown(arguments[0], list(presets), "preset"))
    return arguments


def _plain(docstring):
    """A docstring as plain text."""
    return inspect.cleandoc(docstring or "").replace("`", "")


def _with_dashes(arguments):
    """The arguments with --num_train changed to --num-train."""
    changed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        changed.append(name.replace("_", "-") + equals + value if name[:2] == "--" else argument)
    return changed


def _shown(value):
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _reader(kind) -> dict[str, Any]:
    """The arguments of `add_argument` that make argparse read a value of this type."""
    members = [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(kind) if member is not type(None)]
    optional = members != [kind] and type(None) in typing.get_args(kind)
    if typing.get_origin(members[0]) is tuple:
        inner = typing.get_args(members[0])
        return _reader(inner[0]) | {"nargs": "*" if inner[-1] is ... else len(inner)}
    if typing.get_origin(members[0]) is Literal:
        choices = typing.get_args(members[0])
        expected, metavar = f"one of {', '.join(choices)}", "{" + ",".join(choices) + "}"
        readers = [{choice: choice for choice in choices}.__getitem__]
    else:
        names = {int: "an integer", float: "a number", str: "a text", bool: "True or False"}
        metavars = {int: "INT", float: "NUMBER", str: "TEXT", bool: "{True,False}"}
        expected = " or ".join(names[member] for member in members)
        metavar = "|".join(metavars[member] for member in members)
        readers = [_read_bool if member is bool else member for member in members]

    def read(text):
        if optional and text == "None":
            return None
        for reader in readers:
            try:
                return reader(text)
            except (ValueError, KeyError):
                continue
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")

    switch = {"nargs": "?", "const": True} if members == [bool] else {}
    return {"type": read, "metavar": metavar, **switch}


def _read_bool(text):
    return {"True": True, "true": True, "False": False, "false": False}[text]
