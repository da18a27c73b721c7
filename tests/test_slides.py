"""The slides: what of a notebook they show, and that they need nothing from elsewhere."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from lib import paths

import make_slides

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder that `make slides` writes, and its pages, parsed, by name."""
    folder = tmp_path_factory.mktemp("slides")
    make_slides.write(folder)
    found = {
        file.stem: BeautifulSoup(file.read_text(), "html.parser") for file in folder.glob("*.html")
    }
    return folder, found


def test_of_a_text_headings_formulas_and_the_first_sentences_are_shown():
    source = (
        "## 2.2 One layer back\n\nDeconvolution puts *each* [kernel](../a.md#kernel) back. So:\n\n"
        "$$h = z * w$$\n\nA second paragraph.\n\n### Why\n\nBecause of this:\n\n| a | b |"
    )
    assert make_slides.cut(source) == (
        "## 2.2 One layer back\n\nDeconvolution puts *each* kernel back. So:\n\n$$h = z * w$$\n\n"
        "### Why\n\nBecause of this."
    )
    assert make_slides.cut(
        "## What to remember\n\n- One.\n- Two.\n\n## Exercises\n\n1. Three."
    ) == ("## What to remember\n\n- One.\n- Two.")


def test_a_slide_has_room_for_some_sentences_and_shows_one_at_least():
    long = "A sentence that goes on" + " and on" * 40 + "."
    assert make_slides.first_sentences(f"{long} Another.") == long
    assert make_slides.first_sentences(f"One, of Eq. 3. Two. {long}") == "One, of Eq. 3. Two."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_about_fifteen_slides_and_none_is_empty(path):
    cells = nbformat.read(path, 4).cells
    types = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells]
    assert set(types) <= {None, "slide", "subslide", "-", "fragment", "skip", "notes"}
    assert 9 <= types.count("slide") + types.count("subslide") <= 18
    assert types[0] == "slide"
    for cell, kind in zip(cells, types, strict=True):
        if kind in ("slide", "subslide", "-", "fragment"):
            make_slides.cut_cell(cell)
            assert cell.get("outputs") or (cell.cell_type == "markdown" and cell.source)


def test_slides_load_only_what_lies_beside_them(shown):
    folder, pages = shown
    assert list(sorted(pages)) == [path.stem for path in NOTEBOOKS]
    for soup in pages.values():
        loaded = [tag.get("src") or tag["href"] for tag in soup.select("script[src], link[href]")]
        assert len(loaded) == 3 and all((folder / address).is_file() for address in loaded)
        inside = "".join(tag.get_text() for tag in soup.find_all("style"))
        assert not re.search(r"@import|url\(\s*[\"']?(?!data:|#)", inside)
    for sheet in folder.rglob("*.css"):
        for address in re.findall(r"url\([\"']?(?!data:)([^)\"'?#]+)", sheet.read_text()):
            assert (sheet.parent / address).is_file(), f"{sheet}: {address}"
    assert (
        "Permission is hereby granted, free of charge"
        in (folder / "reveal.js" / "LICENSE").read_text()
    )


def test_slides_show_figures_described_and_formulas_but_no_code(shown):
    _, pages = shown
    for name, soup in pages.items():
        assert soup.find("img") and all(image.get("alt") for image in soup.find_all("img"))
        assert not soup.select(".jp-CodeMirrorEditor, .jp-InputPrompt, .anchor-link")
        assert not re.search(r"\$\$|\\frac", soup.select_one(".slides").get_text()), name
    assert len(pages["01_cam_imagenet"].find_all("math")) > 2
    assert len(pages["02_clear_mnist"].find_all("math")) > 4
