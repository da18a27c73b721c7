"""Pages of notebooks: formulas drawn, images described, and nothing asked of the network."""

import base64
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from lib import page, paths

PNG = base64.b64encode(b"\x89PNG").decode()


@pytest.fixture
def shown(tmp_path):
    """A function that writes a notebook of some cells and returns its page, parsed."""

    def show(*cells, **metadata):
        file = tmp_path / "a.ipynb"
        nbformat.write(v4.new_notebook(cells=list(cells), metadata=metadata), file)
        return BeautifulSoup(page.html(file), "html.parser")

    return show


def displayed(data, **metadata):
    return v4.new_code_cell("a", outputs=[v4.new_output("display_data", data, metadata=metadata)])


def requests(soup):
    """What a browser that shows the page would ask the network for; links are no requests."""
    asked = [tag["src"] for tag in soup.select("[src]") if not tag["src"].startswith("data:")]
    asked += [tag["href"] for tag in soup.select("link[href]")]
    for tag in soup.find_all("style"):
        asked += re.findall(r"@import[^;]*|url\(\s*[\"']?(?!data:|#)[^)]*", tag.get_text())
    scripts = [tag for tag in soup.find_all("script") if not tag.get("type", "").endswith("json")]
    return asked + [tag.get_text()[:80] for tag in scripts]


def test_a_formula_becomes_mathml_in_its_line_and_on_a_line_of_its_own(shown):
    soup = shown(v4.new_markdown_cell("Eq. 1 says $F_k > 0$:\n\n$$S = \\sum_k w_k F_k \\tag{1}$$"))
    inline, block = soup.find_all("math")
    assert inline.get("display") is None and block["display"] == "block"
    assert inline.msub.get_text() == "Fk" and "∑" in block.get_text() and "(1)" in block.get_text()
    assert "$" not in soup.main.get_text() and "\\" not in soup.main.get_text()


def test_formulas_in_outputs_are_drawn_too(shown):
    latex = displayed({"text/latex": "$$\\frac12$$"})
    markdown = displayed({"text/markdown": "**A** $\\sqrt2$"})
    first, second = shown(latex, markdown).find_all("math")
    assert first.mfrac and second.msqrt


def test_what_is_no_formula_stays_as_written(shown):
    soup = shown(v4.new_markdown_cell("$\\nosuchcommand <b>$ and $x$"))
    assert soup.main.p.code.get_text() == "\\nosuchcommand <b>" and soup.math.get_text() == "x"
    with pytest.raises(ValueError, match=r"\\nosuchcommand <b>"):
        page.mathml("\\nosuchcommand <b>", display=False)


def test_a_link_out_of_notebooks_leads_on_from_where_the_page_lies(shown, tmp_path):
    term = "teaching/glossary.md#class-activation-map"
    soup = shown(v4.new_markdown_cell(f"[a term](../{term}), [notebook 2](02_clear_mnist.ipynb)"))
    first, second = [link["href"] for link in soup.main.find_all("a")]
    assert (tmp_path / first).resolve() == paths.ROOT / term
    assert second == "02_clear_mnist.ipynb"


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg"])
def test_an_image_keeps_what_its_output_says_about_it(shown, kind):
    for metadata in ({kind: {"alt": '2 < 3, a "map"'}}, {"alt": '2 < 3, a "map"'}):
        soup = shown(displayed({kind: PNG}, **metadata))
        (image,) = soup.find_all("img")
        assert image["alt"] == '2 < 3, a "map"' and image["src"] == f"data:{kind};base64,{PNG}"
        caption = soup.find(class_="described")
        assert caption.get_text() == image["alt"] and caption["aria-hidden"] == "true"


def test_an_image_of_which_nothing_is_said_says_so(shown):
    assert shown(displayed({"image/png": PNG})).img["alt"] == (
        "No description has been provided for this image"
    )


def test_an_image_attached_to_a_cell_is_shown(shown):
    attached = {"a.png": {"image/png": PNG}}
    soup = shown(v4.new_markdown_cell("![a map](attachment:a.png)", attachments=attached))
    assert (
        soup.main.img["src"] == f"data:image/png;base64,{PNG}" and soup.main.img["alt"] == "a map"
    )


def test_a_widget_is_shown_as_text_and_loads_no_script(shown):
    view = {"model_id": "1", "version_major": 2, "version_minor": 0}
    bar = displayed({"application/vnd.jupyter.widget-view+json": view, "text/plain": "0 of 3"})
    state = {"state": {"1": {"model_name": "A", "model_module": "b", "state": {}}}}
    widgets = {"application/vnd.jupyter.widget-state+json": state}
    soup = shown(bar, widgets=widgets)
    assert not requests(soup) and "0 of 3" in soup.main.get_text()


def test_the_font_of_formulas_is_inside_the_page(shown):
    style = "".join(tag.get_text() for tag in shown().find_all("style"))
    (font,) = re.findall(r"url\(data:font/woff2;base64,([^)]*)\)", style)
    assert base64.b64decode(font) == page.FONT.read_bytes()


@pytest.mark.parametrize("name", ["01_cam_imagenet", "02_clear_mnist"])
def test_the_page_of_a_committed_notebook_asks_the_network_for_nothing(name):
    soup = BeautifulSoup(page.html(paths.NOTEBOOKS / f"{name}.ipynb"), "html.parser")
    assert not requests(soup)
    assert len(soup.find_all("math")) > 40
    assert not re.search(r"\$|\\(frac|sum|hat)", " ".join(p.get_text() for p in soup.select("p")))
