"""Add to the site what is not written in docs/: recipes with their results, and the API reference.

The reference shows public names only: those that a package's `__init__` exports.
"""

import logging
import pathlib
import re

import griffe
from markdown import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks")
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ["data", "geometry", "points", "diffusion", "metrics", "plots"]
RECIPES = {
    "danger_zone": "Danger zone (Fig. 3)",
    "denoising_error": "Denoising error (Fig. 1)",
    "noise_level_memorization": "Memorization by level (Fig. 2)",
    "gap_training": "Gap training (Fig. 4)",
    "gap_sweep": "Gap sweep (Fig. 5)",
    "denoiser_swap": "Denoiser swap (Table 1)",
    "repair": "Repair while sampling",
    "local_denoisers": "Local denoisers",
    "memorization_onset": "When copying starts",
    "large_noise": "Large noise (Thms. 4.9, 4.10)",
    "audit": "Audit a data set",
    "train": "Train and sample",
    "evaluate": "Evaluate samples",
    "scale": "Large data sets",
    "benchmark": "Speed",
    "compile": "Compile for TPUs",
    "tpu": "Cloud TPU",
}


def on_config(config):
    """Append the recipes and the reference to the navigation."""
    recipes = [{title: f"experiments/{name}/README.md"} for name, title in RECIPES.items()]
    config.nav.append({"Recipes": ["experiments/index.md", *recipes]})
    reference = ["reference/index.md"]
    for package in PACKAGES:
        modules = sorted(_exports(f"geomem.{package}"))
        pages = [{module.rpartition(".")[2]: _page(module)} for module in modules]
        reference.append({f"geomem.{package}": [f"reference/{package}/index.md", *pages]})
    config.nav.append({"API reference": reference})
    config.markdown_extensions.append(Docstrings())
    return config


def on_files(files, config):
    """Add the recipes, their results and the pages of the reference."""
    paths = [f"experiments/{name}/README.md" for name in RECIPES]
    paths += [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("experiments/*/results/**/*"))
        if path.suffix in {".png", ".csv", ".json", ".html"}
    ]
    for path in paths:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for uri, content in _reference().items():
        files.append(File.generated(config, uri, content=content))
    _check_gallery(paths)
    return files


def on_page_markdown(markdown, page, **_):
    """Recipes are beside docs/ in the repository, and inside it on the site."""
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(f"]({up}../experiments/", f"]({up}experiments/")
    return markdown.replace("](../../docs/", "](../../")


def on_page_content(html, page, **_):
    """Warn where Markdown took an equation apart (inline, with no backslash before a sign)."""
    if "klzzwxh" in html:
        log.warning("%s: an equation was not read as one", page.file.src_uri)


class Docstrings(Extension):
    """Read docstrings as they are written: examples are code, `<` means less than."""

    def extendMarkdown(self, md):
        """Register the changes."""
        md.preprocessors.register(Examples(md), "examples", 100)
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


class Examples(Preprocessor):
    """Put a fence around each `>>>` example, which ends at the next blank line."""

    def run(self, lines):
        """Return the lines of a text with its examples fenced."""
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


def _check_gallery(paths):
    shown = set(re.findall(r"\]\(../(experiments/[^)]*)\)", (ROOT / "docs/gallery.md").read_text()))
    for path in sorted(set(paths) - shown):
        if path.endswith(".png"):
            log.warning("gallery.md does not show %s", path)


_GEOMEM = griffe.load("geomem", search_paths=[ROOT])


def _object(path):
    return _GEOMEM[path.removeprefix("geomem.")] if path != "geomem" else _GEOMEM


def _exported(package):
    """Exported names of a package, each with the path of what it stands for."""
    members, imports = _object(package).members, _object(package).imports
    modules = [name for name, m in members.items() if not m.is_alias and m.is_module]
    names = [str(name) for name in _object(package).exports or imports or modules]
    targets = {name: _target(members[name]) for name in names if not name.startswith("_")}
    return {name: path for name, path in targets.items() if path.startswith("geomem.")}


def _target(member):
    """Path of what a name stands for: an import, or a second name such as `b = a`."""
    if member.is_alias and not member.target_path.startswith("geomem."):
        return member.target_path
    target = member.final_target if member.is_alias else member
    value = str(target.value) if target.is_attribute else ""
    return f"{target.parent.path}.{value}" if value in target.parent.members else target.path


def _exports(package):
    """Public names by module: {"geomem.geometry.shells": ["contains", ...], ...}."""
    modules = {}
    for path in sorted(_exported(package).values(), key=lambda path: _object(path).is_module):
        if _object(path).is_module:
            modules[path] = [str(name) for name in _object(path).exports or ()]
        else:
            module, _, name = path.rpartition(".")
            modules.setdefault(module, []).append(name)
    return {module: names for module, names in modules.items() if names}


def _reference():
    """Pages of the reference: one for each package and one for each of its public modules."""
    front = [
        f"| [`geomem.{name}`][{path}] | {_summary(path)} |"
        for name, path in _exported("geomem").items()
        if not _object(path).is_module
    ]
    front += [f"| [`geomem.{name}`]({name}/index.md) | {_summary(name)} |" for name in PACKAGES]
    pages = {"reference/index.md": _table("geomem", front)}
    for package in PACKAGES:
        rows = []
        for module, names in sorted(_exports(f"geomem.{package}").items()):
            pages[_page(module)] = (
                f"# `{module}`\n\n::: {module}\n    options:\n      members: {names}\n"
            )
            for name in names:
                path = f"{module}.{name}"
                rows.append(f"| [`{path.removeprefix('geomem.')}`][{path}] | {_summary(path)} |")
        pages[f"reference/{package}/index.md"] = _table(f"geomem.{package}", rows)
    return pages


def _table(package, rows):
    text = _object(package).docstring.value
    return (
        f"# `{package}`\n\n{text}\n\n| name | what it does |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _summary(path):
    """First sentence of a docstring, fit for a table's cell."""
    docstring = _object(path).docstring
    paragraph = " ".join(docstring.value.split("\n\n")[0].split()) if docstring else ""
    return re.split(r"(?<=[.]) ", paragraph)[0].replace("|", "\\|")


def _page(module):
    return f"reference/{module.removeprefix('geomem.').replace('.', '/')}.md"
