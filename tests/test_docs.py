"""The examples in docs/ produce the output they show; each page is one session."""

import doctest
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
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
