"""Every flag of every command refuses bad values in one line that names it."""

import dataclasses
import importlib
import types
import typing

import pytest
from faults.commands import refuses  # noqa: F401

from geomem.__main__ import COMMANDS
from geomem.experiments.common import dataclass_flags

NAMES = [name for commands in COMMANDS.values() for name in commands]
FIRST = {"train": ["digits"]}  # the preset
NEEDED = {"evaluate": ["--samples", "x.npy"]}
NO_NUMBER = ["", "abc", "nan", "1,5", "0x10", "None ", "1e", "--", "[1]", "1 2", "\u0661x"]
TEXT = ["", "~nobody-of-this-name/x"]


def bad_values(kind, field):
    """Yield lists of words that no flag of this type may accept."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        members = [member for member in inner if member is not types.NoneType]
        if str in members:
            members = [str]
            yield from (["nan"], ["inf"], ["-1"]) if float in inner else ()
        yield from bad_values(members[0], field)
        return
    if origin is tuple:
        yield from bad_values(inner[0], field) if inner[-1] is ... else ()
        if inner[-1] is not ...:
            yield from ([], ["1"], ["1", "x"], ["1", "nan"], ["inf", "1"])
    elif origin is typing.Literal:
        yield from ([""], ["nope"], [inner[0].swapcase()], [f" {inner[0]}"], ["0"])
    elif kind is bool:
        yield from (["maybe"], ["2"], [""], ["TRUE"], ["no"])
    elif kind is str:
        yield from ([text] for text in TEXT)
    else:
        start = sum(map(ord, field.name))  # the fields share the work
        yield from ([NO_NUMBER[(start + i) % len(NO_NUMBER)]] for i in range(4))
        yield from (["inf"], ["-inf"], ["1e999"], ["-" + "9" * 23], ["9" * 5000])
        if kind is int:
            yield from (["1.5"], ["1e3"], ["9" * 23], ["1.0"], ["-1"])
        least = field.metadata.get("least")
        if kind is float and (least is None or least >= 0):
            yield from (["-1"], ["-1e-30"], ["-0.5"])
        if least is None and "seed" not in field.name.split("_"):
            yield from (["0"], ["-0"])


@pytest.mark.parametrize("name", NAMES)
def test_bad_values_are_refused_in_one_line(name, refuses):  # noqa: F811
    config = importlib.import_module(f"geomem.experiments.{name.replace('-', '_')}").Config
    kinds, failures, count = typing.get_type_hints(config), [], 0
    for field in dataclasses.fields(config):
        option = dataclass_flags.option(field.name)
        for words in bad_values(kinds[field.name], field):
            needed = NEEDED.get(name, []) if field.name != "samples" else []
            command = [name, *FIRST.get(name, []), *needed, option, *words]
            failures.append(refuses(command, "" if words == ["--"] else option))
            count += 1
    failures = [failure for failure in failures if failure]
    assert count >= 20
    assert not failures, "\n".join([f"{len(failures)} of {count}", *failures[:20]])


@pytest.mark.parametrize("words", [["trian"], ["--seed", "1"], ["\udcff"], ["train", "dig its"]])
def test_unknown_commands_are_refused_in_one_line(words, refuses):  # noqa: F811
    assert refuses(words) is None
