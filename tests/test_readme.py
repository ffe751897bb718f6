"""The README is one page, and its Python example prints what its comments say."""

import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_example_prints_its_comments(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    zone, shape = re.findall(r"print\(.*\)  # (.*)", example)
    assert re.match(r"Danger zone at threshold 0.8: sigma from 1\.\d+ \[", zone)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith(zone.removesuffix("..."))
    assert shape in printed
    assert (tmp_path / "zone.png").stat().st_size > 1000


def test_fits_on_one_page():
    lines = README.splitlines()
    assert len(lines) <= 120
    prose = [line for line in lines if not line.startswith("|")]  # a row of a table is one line
    assert max(map(len, prose)) <= 100


def test_has_two_commands_for_newcomers():
    (install,) = re.findall(r"## Install\n.*?```\n(.*?)```", README, flags=re.DOTALL)
    assert len(install.splitlines()) == 2
    assert all(line.startswith("pip install -e ") for line in install.splitlines())


def test_links_point_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.replace("\n", " "))
    assert len(links) > 10
    for link in links:
        assert (pathlib.Path(__file__).parents[1] / link.strip()).exists(), link
