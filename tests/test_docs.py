"""The examples in docs/ produce the output they show (a page is a session), and links work."""

import doctest
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("experiments/**/README.md")])
EXAMPLES = {
    page.relative_to(DOCS).with_suffix("").as_posix(): "\n".join(examples)
    for page in sorted(DOCS.rglob("*.md"))
    if (examples := re.findall(r"```pycon\n(.*?)```", page.read_text(), flags=re.DOTALL))
}


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run(page):
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    test = doctest.DocTestParser().get_doctest(EXAMPLES[page], {}, page, f"docs/{page}.md", 0)
    report = []
    results = doctest.DocTestRunner(optionflags=options).run(test, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


def test_tutorial_and_how_tos_have_examples():
    assert {"tutorial", "howto/data", "howto/gap", "howto/extend"} <= EXAMPLES.keys()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_work_in_the_repository(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
        generated = link.startswith("reference/")  # by docs/build_pages.py
        assert generated or (path.parent / link).exists(), link
