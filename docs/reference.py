"""A page of the API reference for each public module, made from its docstrings by the build."""

import logging
import pathlib

from markdown import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks")
ROOT = pathlib.Path(__file__).parents[1]


def on_config(config):
    """Hang the pages into the navigation, folder by folder."""
    areas = {}
    for name in _modules():
        area, _, module = name.removeprefix("geomem.").partition(".")
        areas.setdefault(area, []).append({module: _page(name)} if module else _page(name))
    pages = [{area: pages if len(pages) > 1 else pages[0]} for area, pages in areas.items()]
    config.nav.append({"Reference": pages})
    config.markdown_extensions.append(Docstrings())
    return config


def on_files(files, config):
    """Add the pages."""
    for name in _modules():
        content = f"# `{name}`\n\n::: {name}\n"
        files.append(File.generated(config, _page(name), content=content))
    return files


def on_page_content(html, page, **_):
    """Refuse an equation that Markdown has taken apart (inline, no backslash before a sign)."""
    if "klzzwxh" in html:
        log.warning("%s: an equation was not read as one", page.file.src_uri)


class Docstrings(Extension):
    """Reads docstrings as they are written: examples are code, and `<` is less than, not HTML."""

    def extendMarkdown(self, md):
        """Register both."""
        md.preprocessors.register(Examples(md), "examples", 100)
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


class Examples(Preprocessor):
    """Puts a fence around each `>>>` example, which ends at the next blank line."""

    def run(self, lines):
        """The lines of a text, fenced."""
        fenced, inside, in_fence = [], False, False
        for line in [*lines, ""]:
            in_fence ^= line.lstrip().startswith("```")
            if line.startswith(">>>") and not inside and not in_fence:
                fenced.append("```pycon")
                inside = True
            elif inside and not line.strip():
                fenced.append("```")
                inside = False
            fenced.append(line)
        return fenced


def _modules():
    """Dotted names, a package before its modules."""
    paths = [path.relative_to(ROOT) for path in (ROOT / "geomem").rglob("*.py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if "." in name and "._" not in name)


def _page(name):
    path = f"reference/{name.removeprefix('geomem.').replace('.', '/')}"
    return f"{path}/index.md" if (ROOT / name.replace(".", "/")).is_dir() else f"{path}.md"
