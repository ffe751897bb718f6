"""Command-line flags from a dataclass: one field, one flag, documented by the string below it."""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

# The headings of a help text, the most common first. A field without `flag` is an option.
GROUPS = (
    *("options", "data", "curves", "noise", "network", "training"),
    *("sampling", "evaluation", "output", "advanced"),
)
REQUIRED = dataclasses.MISSING


def flag(
    default: Any,
    group: str = "options",
    *,
    positional: bool = False,
    kw_only: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a dataclass field that a command's help lists under `group`, one of GROUPS.

    Args:
      default: the default value, or REQUIRED.
      group: the heading.
      positional: whether the value may also be given without its flag.
      kw_only: as in `dataclasses.field`; needed for REQUIRED after fields with defaults.
      least, most: limits of a number. By default an integer is at least 1, a number is positive, a
        seed has 32 bits, and noise levels (sigma...) are between 1e-8 and 1e8.
    """
    assert group in GROUPS, group
    metadata = {"group": group, "positional": positional, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata, kw_only=kw_only)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises a one-line ValueError where argparse prints and exits."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        # argparse takes -1e-3 for a flag.
        self._negative_number_matcher = re.compile(
            r"-((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf|nan)$", re.IGNORECASE
        )

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
    """
    # --num_train works like --num-train.
    words = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), w) for w in arguments]
    base, switches = None, switches or {}
    if presets is not None:
        name, *words = _check_preset(config, words, prog, presets, about or {})
        base, prog = presets[name], f"{prog} {name}"
    about_flags = bool({"-h", "--help"} & set(words))  # parsing the sources takes a while
    values, extra = build(config, prog, base, switches, help=about_flags).parse_known_args(words)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(values).items()}
    positional = _positional(config)
    if positional and extra and not extra[0].startswith("-"):
        if positional in given:
            raise ValueError(f"{option(positional)} is given twice.")
        given[positional] = extra.pop(0)
    if extra:
        names = [*(field.name for field in dataclasses.fields(config)), *switches]
        raise ValueError(unknown(extra[0], [option(name) for name in names]))
    chosen = {name: value for name, value in given.items() if name not in switches}
    if base is not None:
        return dataclasses.replace(base, **chosen), set(given)
    for field in dataclasses.fields(config):
        if field.default is REQUIRED and field.name not in given:
            place = field.name.upper() if field.name == positional else option(field.name)
            raise ValueError(f"{place} is required.")
    return config(**chosen), set(given)


def build(
    config: type,
    prog: str,
    base: Any = None,
    switches: Mapping[str, str] | None = None,
    *,
    help: bool = True,
) -> Parser:
    """Return a parser of a configuration's flags, in groups, with the defaults of `base`.

    Without `help`, it has no help texts.
    """
    positional = _positional(config)
    place = f" [{positional.upper()}]" if positional else ""
    parser = Parser(
        prog=prog,
        usage=f"{prog}{place} [flags]",
        description=_plain(config.__doc__),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 30, 100),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    groups = {heading: parser.add_argument_group(heading) for heading in GROUPS}
    kinds, texts = typing.get_type_hints(config), field_help(config) if help else {}
    for field in dataclasses.fields(config):
        default = field.default if base is None else getattr(base, field.name)
        text = texts.get(field.name, "")
        if default not in (None, (), ""):  # a preset's default, not the one in the text
            text = re.sub(r"; default: .*", ".", text)
        if field.name == positional:
            text += f" May be given without {option(positional)}."
        if default is REQUIRED:
            text += " (required)"
        elif default not in (None, (), ""):
            text += f" (default: {_shown(default)})"
        groups[field.metadata.get("group", GROUPS[0])].add_argument(
            option(field.name),
            dest=field.name,
            help=text.replace("%", "%%"),
            **_reader(kinds[field.name], field),
        )
    last = groups[GROUPS[-1]]
    for name, text in (switches or {}).items():
        last.add_argument(option(name), action="store_true", default=argparse.SUPPRESS, help=text)
    last.add_argument("-h", "--help", action="help", help="Show this text.")
    return parser


def option(name: str) -> str:
    """Return the flag of a field: --num-train for num_train."""
    return f"--{name.replace('_', '-')}"


@functools.cache
def field_help(config: type) -> dict[str, str]:
    """Return the documentation of each field of a dataclass: the string below it."""
    texts = {}
    for base in filter(dataclasses.is_dataclass, reversed(config.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for pair in itertools.pairwise(body):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def unknown(text: str, names: Sequence[str], kind: str = "flag") -> str:
    """Return the message for an unknown name, which suggests the most similar known one."""
    if kind == "flag" and not text.startswith("-"):
        return f"unexpected argument {text!r}."
    close = difflib.get_close_matches(text.partition("=")[0], names, n=1)
    return f"unknown {kind} {text!r}{f'; did you mean {close[0]}?' if close else '.'}"


def from_json(config: type, values: Any) -> Any:
    """Return a configuration from JSON values by field name; missing fields have their defaults.

    Raises:
      ValueError: an unknown field, or a value of the wrong type or outside its flag's limits.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it must hold values by name, got a {type(values).__name__}")
    kinds, fields = typing.get_type_hints(config), dataclasses.fields(config)
    if unexpected := sorted(values.keys() - {field.name for field in fields}):
        raise ValueError(f"{unexpected[0][:_SHOWN]} is not a setting")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for field in fields:
        value = given.get(field.name, field.default)
        numbers = value if isinstance(value, tuple) else (value,)
        if not _is_a(kinds[field.name], value) or any(
            map(functools.partial(_must_be, field), numbers)
        ):
            raise ValueError(f"{field.name} cannot be {str(value)[:_SHOWN]!r}")
    return config(**given)


def _is_a(kind, value) -> bool:
    """Whether a value has the type of a field."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(member, value) for member in inner)
    if origin is Literal:
        return type(value) is str and value in inner
    if origin is tuple:
        repeated = inner[-1] is ...
        fits = type(value) is tuple and (repeated or len(value) == len(inner))
        return fits and all(_is_a(inner[0], member) for member in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def _positional(config):
    """The name of the field that the command also takes without its flag, or None."""
    fields = dataclasses.fields(config)
    return next((field.name for field in fields if field.metadata.get("positional")), None)


def _check_preset(config, words, prog, presets, about):
    """Return the words after checking that the first names a preset, or print the help."""
    if not words or words[0].startswith("-"):
        if {"-h", "--help"} & set(words):
            width = max(map(len, presets))
            lines = [f"  {name:{width}}  {about.get(name, '')}" for name in presets]
            print(f"usage: {prog} PRESET [flags]\n\n{_plain(config.__doc__)}\n\npresets:")
            print("\n".join(lines), f"\n\n{prog} PRESET --help lists the flags.", sep="")
            raise SystemExit(0)
        raise ValueError(f"PRESET is required: one of {', '.join(presets)}.")
    if words[0] not in presets:
        raise ValueError(unknown(words[0], list(presets), "preset"))
    return words


def _plain(docstring):
    """A docstring as plain text."""
    return inspect.cleandoc(docstring or "").replace("`", "")


def _shown(value):
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _reader(kind, field: dataclasses.Field | None = None) -> dict[str, Any]:
    """The arguments of `add_argument` that make argparse read a value of this type."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    members = [m for m in typing.get_args(kind) if m is not types.NoneType] if union else [kind]
    optional = union and types.NoneType in typing.get_args(kind)
    first, inner = members[0], typing.get_args(members[0])
    if typing.get_origin(first) is tuple:
        return _reader(inner[0], field) | {"nargs": "*" if inner[-1] is ... else len(inner)}
    if typing.get_origin(first) is Literal:
        expected, metavar = f"one of {', '.join(inner)}", "{" + ",".join(inner) + "}"
        readers = [dict(zip(inner, inner, strict=True)).__getitem__]
    else:
        readers, names, metavars = zip(*(_READERS[member] for member in members), strict=True)
        expected, metavar = " or ".join(names), "|".join(metavars)

    def read(text):
        if optional and text == "None":
            return None
        for reader in readers:
            try:
                value = reader(text)
            except (ValueError, KeyError):
                continue
            if field is not None and (must := _must_be(field, value)):
                raise argparse.ArgumentTypeError(
                    f"must be {must}, got {text[:_SHOWN] or repr(text)}"
                )
            return value
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text[:_SHOWN]!r}")

    switch = {"nargs": "?", "const": True} if members == [bool] else {}
    return {"type": read, "metavar": metavar, **switch}


def _must_be(field, value) -> str | None:
    """What the value of a flag must be, unless it is."""
    if isinstance(value, str):
        if not value:
            return "a name"
        if value.startswith("~") and os.path.expanduser(value) == value:
            return "in the home of a known user"
        return None
    if type(value) not in (int, float):
        return None
    if not math.isfinite(value):
        return "finite"
    integer, seed = type(value) is int, re.fullmatch(r"(.*_)?seed", field.name)
    least, most = (field.metadata.get(limit) for limit in ("least", "most"))
    if least is None and not integer and value <= 0:
        return "positive"
    if least is None and field.name.startswith("sigma"):
        least, most = _NOISE_LEVELS
    if least is None:
        least = 0 if seed else 1 if integer else 0.0
    if most is None:
        most = _LARGEST_SEED if seed else _LARGEST_INTEGER if integer else _LARGEST_NUMBER
    if value < least:
        return f"at least {least:g}"
    return f"at most {most:.10g}" if value > most else None


_SHOWN = 60  # characters of a bad value
_LARGEST_SEED = 2**32 - 1  # JAX's seeds have 32 bits; larger ones would wrap in silence
_LARGEST_INTEGER = 2**31 - 1
_LARGEST_NUMBER = 1e12
_NOISE_LEVELS = 1e-8, 1e8  # float32 holds their squares, and these times a squared distance

# How to read a value of each type, what it must be, and how the help shows it.
_READERS = {
    int: (int, "an integer", "INT"),
    float: (float, "a number", "NUMBER"),
    str: (str, "a text", "TEXT"),
    bool: (
        {"True": True, "true": True, "False": False, "false": False}.__getitem__,
        "True or False",
        "{True,False}",
    ),
}
