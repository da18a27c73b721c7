"""The site: built without a warning, and read without the network."""

import base64
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from docutils import nodes

from lib import paths

DOCS = paths.ROOT / "docs"


@pytest.fixture
def configuration(monkeypatch):
    """docs/conf.py as a module."""
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make site` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-E", "-d", folder / "doctrees", "-c", "docs"]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", folder / "site"],
        cwd=paths.ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
    """Every page, parsed, by its file."""
    found = [page for page in site.rglob("*.html") if "_static" not in page.parts]
    return {page: BeautifulSoup(page.read_text(), "html.parser") for page in found}


def loaded(soup):
    """The addresses that a browser loads by itself to show a page."""
    tags = soup.select("[src], link[href]:not([rel~=canonical])")
    return [tag.get("src") or tag["href"] for tag in tags]


def elsewhere(address):
    return bool(urlsplit(address).netloc)


@pytest.mark.slow
def test_no_page_and_no_style_sheet_loads_anything_from_elsewhere(site, pages):
    assert len(pages) > 20
    for page, soup in pages.items():
        assert not [address for address in loaded(soup) if elsewhere(address)], page
        assert not soup.find("base"), page
    styles = [style.get_text() for soup in pages.values() for style in soup.find_all("style")]
    for style in [*styles, *(sheet.read_text() for sheet in site.rglob("*.css"))]:
        assert not re.search(r"(@import\s*|url\(\s*)[\"']?(https?:)?//", style)


@pytest.mark.slow
def test_every_inner_link_leads_to_a_page_and_to_a_place_in_it(pages):
    names = {
        page: {tag.get("id") or tag.get("name") for tag in soup.select("[id], a[name]")}
        for page, soup in pages.items()
    }
    broken = []
    for page, soup in pages.items():
        for address in [*loaded(soup), *(link["href"] for link in soup.select("a[href]"))]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            wanted = unquote(parts.fragment)
            known = names.get(target, {wanted})
            if not target.is_file() or (wanted and wanted not in known):
                broken.append(f"{page.name}: {address}")
    assert not broken, "\n".join(broken)


@pytest.mark.slow
def test_the_formulas_of_the_notebooks_are_drawn(site, pages):
    for name, least in (("01_cam_imagenet", 50), ("02_clear_mnist", 50), ("04", 15)):
        (page,) = site.glob(f"notebooks/{name}*.html")
        assert len(pages[page].find_all("math")) >= least, page
        written = " ".join(tag.get_text() for tag in pages[page].select("article p, article li"))
        assert not re.search(r"\$|\\(frac|sum|hat)", written), page
    assert (site / "_static" / "formulas.woff2").stat().st_size > 50_000


@pytest.mark.slow
def test_every_image_is_described(site, pages):
    for page, soup in pages.items():
        for image in soup.find_all("img"):
            assert image.get("alt") and not image["alt"].endswith((".png", ".jpeg")), page


@pytest.mark.slow
def test_the_site_holds_the_notebooks_the_texts_and_what_search_finds(site):
    stems = [path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")]
    names = [f"{folder}/{stem}" for folder in ("notebooks", "exercises") for stem in stems]
    for name in (*names, "README", "CONTRIBUTING", "data/README", "docs/api/1-methods", "search"):
        assert (site / f"{name}.html").exists(), name
    assert 'url=README.html"' in (site / "index.html").read_text()
    index = (site / "searchindex.js").read_text()
    assert "deconvnet" in index and "attentive_responses" in index


@pytest.mark.slow
def test_exercises_stand_beside_their_notebook_with_solutions_folded(site, pages):
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        notebook = pages[site / "notebooks" / f"{path.stem}.html"]
        assert notebook.select_one(f'article a[href="../exercises/{path.stem}.html"]'), path.stem
        exercises = pages[site / "exercises" / f"{path.stem}.html"].article
        assert exercises.select_one(f'a[href="../notebooks/{path.stem}.html"]')
        solutions = [one for one in exercises.find_all("details") if "Solution" in one.summary.text]
        assert len(solutions) >= 4 and all(one.find("pre") for one in solutions)


@pytest.mark.slow
def test_the_functions_of_a_module_stand_below_what_the_module_says(site, pages):
    soup = pages[site / "docs" / "api" / "1-methods.html"]
    module = soup.find(id="lib-methods-clear")
    assert module.find("table").th.get_text() == "relu"  # Markdown, as in the module
    function = module.find(id="lib.methods.clear.attentive_responses").find_parent("dl")
    assert "Parameters" in function.get_text() and "Raises" in function.get_text()
    assert "scores, R = attentive_responses(network, images)" in function.pre.get_text()


def test_a_notebook_links_to_colab_where_an_address_is_given_and_only_there(
    configuration, monkeypatch
):
    def linked(page, address):
        monkeypatch.setattr(configuration, "COLAB", address)
        document = nodes.section("", nodes.title("", "A"), nodes.paragraph("", "B"))
        configuration.colab(SimpleNamespace(env=SimpleNamespace(docname=page)), document)
        links = list(document.findall(nodes.reference))
        assert not links or document.index(links[0].parent) == 1
        return [link["refuri"] for link in links]

    there = "https://colab.research.google.com/github/a/b/blob/main"
    name = "notebooks/01_cam_imagenet"
    assert linked(name, there) == [f"{there}/{name}.ipynb"]
    assert linked(name, "") == linked("README", there) == []
    assert linked("exercises/01_cam_imagenet", there) == []


def test_every_module_of_lib_has_its_place_in_the_api():
    headings = re.findall(r"^## (\S+)$", "".join(
        page.read_text() for page in DOCS.glob("api/*.md")
    ), re.M)  # fmt: skip
    files = [path for path in (paths.ROOT / "lib").rglob("*.py") if path.name != "__init__.py"]
    modules = [".".join(file.relative_to(paths.ROOT).with_suffix("").parts) for file in files]
    assert sorted(headings) == sorted(modules)


def test_an_image_of_an_output_keeps_what_the_notebook_says_of_it(
    configuration, monkeypatch, tmp_path
):
    image = b"\x89PNG"
    name = hashlib.sha256(image).hexdigest()
    data = {"image/png": base64.b64encode(image).decode()}
    for metadata in ({"image/png": {"alt": "A map"}}, {"alt": "A map"}):
        outputs = [{"data": data, "metadata": metadata}, {"text": "1"}, {"data": data}]
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        notebook = tmp_path / "notebooks" / "a.ipynb"
        notebook.write_text(json.dumps({"cells": [{"outputs": outputs}, {}]}))
        monkeypatch.setattr(configuration, "ROOT", tmp_path)
        assert configuration.descriptions() == {name: "A map"}
    monkeypatch.setattr(configuration, "DESCRIPTIONS", {name: "A map"})
    document = nodes.section()
    document += [nodes.image(uri=f"/build/{name}.png"), nodes.image(uri="b.png"), nodes.image()]
    document[2]["uri"], document[2]["alt"] = "c.png", "Said"
    configuration.describe(None, document)
    images = list(document.findall(nodes.image))
    assert [one["alt"] for one in images] == ["A map", configuration.UNDESCRIBED, "Said"]
    (caption,) = document.findall(nodes.raw)
    assert document.index(caption) == 1 and ">A map</p>" in caption.astext()
