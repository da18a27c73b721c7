"""A notebook as a page that asks the network for nothing: formulas as MathML, their font inside."""

import base64
import os
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from lib import paths

# STIX Two Math 2.11 of the STIX Fonts Project Authors, SIL Open Font License 1.1, reduced to the
# Latin and Greek letters and the signs of formulas (formulas.LICENSE.txt says how).
FONT = Path(__file__).with_name("formulas.woff2")

NO_SCRIPTS = """
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
"""
OUTPUTS = """
{%- macro described(image, alt) -%}
{%- if alt is none -%}
{{ image }}
{%- else -%}
{{ image | replace('<img ', '<img alt="' ~ alt | escape ~ '" ') }}
<p class="described" aria-hidden="true">{{ alt | escape }}</p>
{%- endif -%}
{%- endmacro -%}
{%- block data_png scoped -%}
{{ described(super(), output | get_metadata('alt', 'image/png')) }}
{%- endblock -%}
{%- block data_jpg scoped -%}
{{ described(super(), output | get_metadata('alt', 'image/jpeg')) }}
{%- endblock -%}
{%- block data_latex scoped -%}
<div class="jp-RenderedLatex jp-OutputArea-output" data-mime-type="text/latex">
{{ output.data['text/latex'] | markdown2html }}
</div>
{%- endblock -%}
"""
TEMPLATE = (
    "{%- extends 'index.html.j2' -%}"
    + NO_SCRIPTS
    + OUTPUTS
    + """
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
{{ resources.formulas }}
/* Text as dark as WCAG 2 asks, and links that are not known by their colour alone. */
:root {
  --jp-mirror-editor-number-color: #060;
  --jp-mirror-editor-comment-color: #366;
  --jp-mirror-editor-operator-color: #71c;
  --jp-cell-prompt-not-active-font-color: #616161;
  --jp-cell-prompt-not-active-opacity: 1;
}
.jp-RenderedHTMLCommon a:link { text-decoration: underline; }
</style>
{%- endblock -%}
"""
)


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(fancy_error=False)


def mathml(formula: str, display: bool) -> str:
    r"""A formula in LaTeX as MathML, which browsers draw without a script.

    Args:
        formula: without its dollar signs; `\tag` is allowed, as in MathJax, where it stands alone.
        display: on a line of its own; a wide one can be scrolled.

    Raises:
        ValueError: it is not LaTeX that can be converted; the message says what is wrong in it.
    """
    if r"\tag" in formula and r"\begin" not in formula:
        formula = rf"\begin{{equation}}{formula}\end{{equation}}"
    try:
        written = _converter().convert_with_local_state(formula, displaystyle=display)
    except LatexError as error:
        raise ValueError(f"{formula}: {error}") from error
    return f'<span class="math" tabindex="0">{written}</span>' if display else written


def style(font: str) -> str:
    """The style sheet of formulas and of the captions below figures.

    Args:
        font: the address of `FONT`.
    """
    face = f'font-family: "Formulas"; font-display: block; src: url({font}) format("woff2");'
    return (
        f"@font-face {{ {face} }}\n"
        'math { font-family: "Formulas", math; font-size: 1.1em; }\n'
        ".math { display: block; margin: 1em 0; overflow-x: auto; }\n"
        ".described { max-width: 42em; font-size: 0.9em; }\n"
        # An output of a notebook's page is a table, in which a paragraph would be a narrow cell.
        ".jp-OutputArea-child > .described { display: table-caption; caption-side: bottom; "
        "font-family: var(--jp-content-font-family); padding-left: 80px; }\n"
    )


class Renderer(IPythonRenderer):
    """Markdown as nbconvert renders it, formulas as MathML; one that is none stays as written.

    Args:
        folder: of the page. A link out of notebooks/, which begins with `../`, leads from there.
        options: of `IPythonRenderer`.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        """See the class."""
        super().__init__(escape=False, **options)
        self.folder = folder

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link."""
        if url.startswith("../"):
            url = Path(os.path.relpath(paths.NOTEBOOKS / url, self.folder)).as_posix()
        return super().link(text, url, title)

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        return self._formula(body, display=True)

    def inline_math(self, body: str) -> str:
        """A formula in a line."""
        return self._formula(body, display=False)

    def latex_environment(self, name: str, body: str) -> str:
        """A formula in an environment of its own, as `align`."""
        return self._formula(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def _formula(self, body: str, display: bool) -> str:
        try:
            return mathml(body, display)
        except ValueError:
            return f"<code>{self.escape_html(body)}</code>"


class Page(HTMLExporter):
    """nbconvert's page without the scripts that it asks the network for; images keep their alt."""

    raw_template = TEMPLATE
    folder = paths.NOTEBOOKS  # where the page will lie

    @property
    def default_config(self) -> Config:
        """That of nbconvert, without widgets, which would need a script from elsewhere."""
        config = super().default_config
        config.NbConvertBase.display_data_priority = [
            kind for kind in config.NbConvertBase.display_data_priority if "widget" not in kind
        ]
        return config

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        """The filter that renders Markdown; the cell in the context holds pictures it shows."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = Renderer(
            self.folder,
            attachments=attachments,
            anchor_link_text=self.anchor_link_text,
            exclude_anchor_links=self.exclude_anchor_links,
        )
        return MarkdownWithMath(renderer=renderer).render(source)

    def _init_resources(self, resources: dict[str, Any] | None) -> dict[str, Any]:
        font = base64.b64encode(FONT.read_bytes()).decode()
        written = style(f"data:font/woff2;base64,{font}")
        return super()._init_resources(resources) | {"formulas": written}


def html(notebook: Path) -> str:
    """The page of an executed notebook, complete in one file, to lie beside it."""
    exporter = Page()
    exporter.folder = notebook.resolve().parent
    written, _ = exporter.from_filename(str(notebook))
    return written
