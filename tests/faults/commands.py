"""Run commands in this process, and the damaged files that they must refuse."""

import sys

import pytest

from geomem import __main__ as front_door


@pytest.fixture
def refuses(monkeypatch, capfd, tmp_path):
    """Return a function that checks that a command refuses its arguments in one line.

    It returns what is wrong, or None, so that a test can list all failures at once.
    """
    monkeypatch.chdir(tmp_path)

    def check(words, *expected):
        monkeypatch.setattr(sys, "argv", ["geomem", *map(str, words)])
        capfd.readouterr()
        try:
            front_door.main()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            return f"{words}: {type(error).__name__}: {str(error)[:200]}"
        lines = capfd.readouterr().err.splitlines()
        if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            return f"{words}: exit {code}, {lines[:3]}"
        missing = [text for text in expected if text not in lines[0]]
        return f"{words}: {lines[0]} lacks {missing}" if missing else None

    return check


def check_all(refuses, rows):
    failures = [failure for words, *expected in rows if (failure := refuses(words, *expected))]
    assert not failures, "\n".join([f"{len(failures)} of {len(rows)}", *failures[:30]])
