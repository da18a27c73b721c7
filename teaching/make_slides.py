"""Write the slides of the notebooks into build/slides: `make slides`.

What is on a slide is in the metadata of the notebooks' cells, as JupyterLab sets it ("Slide Type"):
a `slide` or `subslide` begins one, `-` goes on with it. A cell without is on none. Of a cell the
slide shows what one can see from the last row: headings, formulas, the first sentences below a
heading, figures with their captions, tables. reveal.js lies beside the slides: they work offline.
"""

import re
import shutil
from functools import partial
from importlib.resources import files
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode

from lib import paths
from lib.page import NO_SCRIPTS, OUTPUTS, Page

REVEAL = files("sphinx_revealjs") / "_static" / "revealjs"  # reveal.js 5, MIT licence
SHIPPED = (
    "LICENSE",
    "dist/reveal.js",
    "dist/reveal.css",
    "dist/theme/white.css",
    "dist/theme/fonts",
)
PICTURES = {"image/png", "image/jpeg"}
SPOKEN = 240  # characters of the sentences below a heading that a slide shows, about
WITHOUT = re.compile(r"## (\d\.\d+ Check|Exercises)$")
TEMPLATE = (
    "{%- extends 'index.html.j2' -%}"
    + NO_SCRIPTS
    + OUTPUTS
    + """
{%- block html_head_css -%}
<style>
{{ resources.formulas }}
html:root { --r-heading-text-transform: none; --r-main-font-size: 30px; }
.reveal h1 { font-size: 60px; }
.reveal h2 { font-size: 44px; }
.reveal h3 { font-size: 36px; }
.reveal .jp-RenderedHTMLCommon { font-size: 28px; line-height: 1.35; }
.reveal img { width: 100%; height: 540px; margin: 0; object-fit: contain; }
.reveal section:has(h2) img { height: 280px; }
.reveal .described { margin: 0 auto; padding: 0; max-width: 60em; font-size: 17px; }
.reveal .table { max-height: 600px; overflow: auto; }
.reveal section:has(h2) .table { max-height: 340px; }
.reveal .table .dataframe { margin: 0 auto; font-size: 20px; }
.reveal div.slide-number { color: #222; background: none; }
.reveal li { margin-bottom: 0.3em; font-size: 22px; }
</style>
{%- endblock -%}
{%- block data_html scoped -%}
<div class="table" tabindex="0">{{ super() }}</div>
{%- endblock -%}
{%- block footer_js -%}
<script src="{{ resources.reveal.url_prefix }}/dist/reveal.js"></script>
<script>
Reveal.initialize({
  width: 1280, height: 720, margin: 0.02, hash: true, slideNumber: "c/t", transition: "none",
});
</script>
{%- endblock -%}
"""
)


def cut(source: str) -> str:
    """What a slide shows of a Markdown cell, in Markdown.

    Headings and formulas stay, of the text the first sentences below each heading, and the lists
    below "What to remember". Links lose their targets.
    """
    kept = []
    short, listed = False, False
    for block in re.split(r"\n{2,}", source.strip()):
        heading, _, rest = block.partition("\n") if block.startswith("#") else ("", "", block)
        if heading:
            if WITHOUT.match(heading):
                break
            kept.append(heading)
            short, listed = True, "What to remember" in heading
        formulas = re.findall(r"\$\$.+?\$\$", rest, re.DOTALL)
        words = re.sub(r"\$\$.+?\$\$", "", rest, flags=re.DOTALL).strip()
        if listed and words:
            kept.append(words)
        elif short and words and not words.startswith(("<", "|", "!", "```")):
            kept.append(first_sentences(words))
            short = False
        kept += formulas
    text = re.sub(r":(?=\n\n(?!\$\$)|$)", ".", "\n\n".join(kept))  # what was to follow is not shown
    return re.sub(r"(?<!!)\[([^\]]+)\]\([^)]+\)", r"\1", text)


def first_sentences(text: str) -> str:
    """As many sentences as a slide has room for, one at least."""
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z\"*`$])", text)
    shown = sentences[0]
    for sentence in sentences[1:]:
        if len(shown) + len(sentence) > SPOKEN:
            break
        shown += " " + sentence
    return shown


def cut_cell(cell: NotebookNode) -> None:
    """Leave of a cell what its slide shows; a cell without a slide is skipped."""
    if "slideshow" not in cell.metadata:
        cell.metadata["slideshow"] = {"slide_type": "skip"}
    if cell.cell_type == "markdown":
        cell.source = cut(cell.source)
    elif cell.cell_type == "code":
        pictures = [output for output in cell.outputs if PICTURES & set(output.get("data", {}))]
        tables = [output for output in cell.outputs if "text/html" in output.get("data", {})]
        cell.outputs = pictures or tables


class Slides(Page, SlidesExporter):
    """nbconvert's slides without what asks the network; formulas as on the pages of notebooks."""

    raw_template = TEMPLATE


def slides(path: Path) -> str:
    """The slides of a notebook, a page that has reveal.js beside it."""
    book = nbformat.read(path, 4)
    book.metadata["title"] = re.match(r"# (.+)", book.cells[0].source)[1] + ":"
    for cell in book.cells:
        cut_cell(cell)
    exporter = Slides(
        reveal_url_prefix="reveal.js",
        reveal_theme="white",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    written, _ = exporter.from_notebook_node(book)
    return written


def write(folder: Path) -> None:
    """Write the slides of all notebooks into a folder, and reveal.js beside them."""
    paths.make(folder)
    for part in SHIPPED:
        source, target = Path(str(REVEAL / part)), folder / "reveal.js" / part
        paths.make(target.parent)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        save = partial(Path.write_text, data=slides(path), encoding="utf-8")
        paths.write(folder / f"{path.stem}.html", save)
    print(f"Open {folder}/01_cam_imagenet.html, and so on; arrows go on, Esc shows all slides")


if __name__ == "__main__":
    write(paths.BUILD / "slides")
