"""The examples in docs/ do what they say; each page is one session."""

import doctest
import pathlib
import re

import pytest

PAGES = sorted((pathlib.Path(__file__).parents[1] / "docs").glob("*.md"))
EXAMPLES = {
    page.stem: "\n".join(found)
    for page in PAGES
    if (found := re.findall(r"```pycon\n(.*?)```", page.read_text(), flags=re.DOTALL))
}


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_examples_run(page):
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    test = doctest.DocTestParser().get_doctest(EXAMPLES[page], {}, page, f"docs/{page}.md", 0)
    report = []
    results = doctest.DocTestRunner(optionflags=options).run(test, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


def test_extend_shows_a_data_set_a_schedule_and_a_metric():
    assert "extend" in EXAMPLES
