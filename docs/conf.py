"""The site: the committed notebooks as they are, exercises, texts, and the API; see `make site`.

Nothing is fetched, neither when the site is built nor when it is read.
"""

import ast
import hashlib
import html
import itertools
import json
import re
import sys
import tomllib
from base64 import b64decode
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from lib.page import FONT, mathml, style

HERE = Path(__file__).parent
ROOT = HERE.parent

# Where the repository's files open in Colab, as "https://colab.research.google.com/github/NAME/
# REPOSITORY/blob/main"; each notebook's page then links to itself there. Empty: no link.
COLAB = ""

project = "CAM, CLEAR and CLEAR-DR"
author = "The CLEAR companion authors"
version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
# What the site holds, under which caption; the README above all.
CONTENTS = {
    "Notebooks": ["notebooks/*.ipynb"],
    "Exercises": ["exercises/[0-9]*.py"],
    "Teaching": ["teaching/*.md"],
    "The library": ["docs/api/*.md"],
    "The project": [
        *("docs/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md"),
        "data/weights/*/README.md",
    ],
}
include_patterns = ["README.md", *itertools.chain(*CONTENTS.values())]
templates_path = ["templates"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # of outputs: their links are those of the notebook
sys.path.insert(0, str(ROOT / "exercises"))
nb_custom_formats = {".py": "make_copies.page"}
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = "CAM, CLEAR and CLEAR-DR: a companion"
html_css_files = ["formulas.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options: dict[str, Any] = {
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has a search button already
}

# Below a heading of docs/api that names a module: what the module says, then its functions.
API = """
{text}

```{{eval-rst}}
.. automodule:: {module}
   :members:
```
"""
UNDESCRIBED = "A figure, described in the text around it"


def complete(app: Sphinx, document: str, source: list[str]) -> None:
    """Put the table of contents below the README, and the modules below their headings."""
    if document == root_doc:
        source[0] += "".join(_contents(caption, CONTENTS[caption]) for caption in CONTENTS)
    if document.startswith("docs/api/"):
        source[0] = re.sub(r"(?<=^## )lib\S+$", _module, source[0], flags=re.M)


def _contents(caption: str, patterns: list[str]) -> str:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    if not found:
        return ""
    pages = "\n".join(f"/{path.relative_to(ROOT).with_suffix('')}" for path in found)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def _module(heading: re.Match[str]) -> str:
    file = (ROOT / heading[0].replace(".", "/")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return heading[0] + "\n" + API.format(text=text, module=heading[0])


def docstring(app: Sphinx, kind: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring from Markdown, as written, to reStructuredText, as read; in place.

    That of a module stands in the page already.
    """
    parts = re.split(r"(`[^`]+`)", "" if kind == "module" else "\n".join(lines))
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    parts[1::2] = [f"`{code}`" for code in parts[1::2]]
    lines[:] = re.sub(r"^Example:$", "Example::\n", "".join(parts), flags=re.M).splitlines()


def descriptions() -> dict[str, str]:
    """What the notebooks say in words about the images of their outputs, by the images' SHA-256."""
    found = {}
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for output in [output for cell in cells for output in cell.get("outputs", [])]:
            for kind in ("image/png", "image/jpeg"):
                described = output.get("metadata", {})
                alt = described.get(kind, {}).get("alt", described.get("alt"))
                if alt and kind in output["data"]:
                    image = b64decode("".join(output["data"][kind]))
                    found[hashlib.sha256(image).hexdigest()] = alt
    return found


def describe(app: Sphinx, document: nodes.document) -> None:
    """Give the images of outputs their alternative text, which MyST-NB leaves out, and a caption.

    MyST-NB names the file of an image after its SHA-256. The caption is the same text: those who
    hear the page are not told it twice.
    """
    for image in list(document.findall(nodes.image)):
        alt = DESCRIPTIONS.get(Path(image["uri"]).stem)
        image.setdefault("alt", alt or UNDESCRIBED)
        if alt:
            text = f'<p class="described" aria-hidden="true">{html.escape(alt)}</p>'
            image.parent.insert(image.parent.index(image) + 1, nodes.raw("", text, format="html"))


DESCRIPTIONS = descriptions()


def colab(app: Sphinx, document: nodes.document) -> None:
    """Put a link to Colab below the title of a notebook's page."""
    name = f"{app.env.docname}.ipynb"
    if COLAB and (ROOT / name).exists():
        link = nodes.reference("", "Open in Colab", refuri=f"{COLAB}/{name}")
        title = next(iter(document.findall(nodes.title)))
        title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", "", link))


def formula(writer: Any, node: nodes.Element) -> None:
    """Write a formula as MathML."""
    writer.body.append(mathml(node.astext(), display=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def front_page(app: Sphinx, failure: Exception | None) -> None:
    """Lead from index.html, where one looks for it, to the README's page."""
    page = f"{root_doc}.html"
    (Path(app.outdir) / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><title>{html_title}</title>'
        f'<meta http-equiv="refresh" content="0; url={page}">'
        f'<p><a href="{page}">{html_title}</a></p></html>\n'
    )


def font(app: Sphinx) -> None:
    """Put the formulas' font and its style sheet where the pages look for them."""
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    (static / FONT.name).write_bytes(FONT.read_bytes())
    dark_enough = ".viewcode-back { color: #0a58a6; background: none; }\n"  # as WCAG 2 asks
    (static / "formulas.css").write_text(style(FONT.name) + dark_enough)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("doctree-read", describe)
    app.connect("doctree-read", colab)
    app.connect("builder-inited", font)
    app.connect("build-finished", front_page)
