"""Every page, opened in a browser that has no network: `make browser` builds them and runs this."""

import re
import shutil
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from lib import page, paths

pytestmark = pytest.mark.browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SITE, SLIDES = paths.ROOT / "build" / "site", paths.ROOT / "build" / "slides"
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
# What is not in order on the page that is shown: formulas that take no room or stand there as they
# were written, and images that are not shown or not described.
FAULTS = r"""() => {
    const found = [];
    for (const formula of document.querySelectorAll("math")) {
        if (formula.checkVisibility() && !formula.getBoundingClientRect().width)
            found.push("a formula without a width: " + formula.textContent);
    }
    const drawn = [...document.querySelectorAll("math")].some(one => one.checkVisibility());
    if (drawn && !document.fonts.check("16px Formulas", "∑"))
        found.push("formulas are not in their font");
    for (const text of document.querySelectorAll("main p, main li, main td")) {
        const words = text.cloneNode(true);
        words.querySelectorAll("code, pre, annotation").forEach(code => code.remove());
        if (/\$\$|\\(frac|sum|hat|begin)/.test(words.textContent))
            found.push("a formula as it was written: " + words.textContent.slice(0, 80));
    }
    for (const image of document.images) {
        if (image.checkVisibility() && !(image.complete && image.naturalWidth))
            found.push("an image that is not shown: " + image.src.slice(0, 80));
        if (!image.alt) found.push("an image without a description: " + image.src.slice(0, 80));
    }
    return found;
}"""
AXE = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false });
    return violations
        .filter(one => ["serious", "critical"].includes(one.impact))
        .map(one => `${one.id}: ${one.help}, as at ${one.nodes[0].html.slice(0, 200)}`);
}"""
SLIDE_HEIGHTS = """() => Reveal.getSlides().map(slide => {
    const { h, v } = Reveal.getIndices(slide);
    Reveal.slide(h, v);
    return [slide.innerText.slice(0, 40), slide.scrollHeight];
})"""


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium and no Chrome on the PATH; Debian's is the package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A page of the browser and what went wrong in it: requests to elsewhere, errors of scripts."""
    context = browser.new_context(offline=True, reduced_motion="reduce")
    context.set_default_timeout(180_000)  # also where other work keeps both cores busy
    tab = context.new_page()
    tab.wrong = []

    def requested(request):
        if urlsplit(request.url).scheme not in ("file", "data", "blob"):
            tab.wrong.append(f"asked for {request.url}")

    tab.on("request", requested)
    tab.on("requestfailed", lambda request: tab.wrong.append(f"did not get {request.url[:200]}"))
    tab.on("pageerror", lambda error: tab.wrong.append(f"a script failed: {error}"))
    yield tab
    context.close()


@cache
def names(file):
    """The places of a page that a link can lead to."""
    return set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", file.read_text(encoding="utf-8")))


def broken(file, links):
    """The links of a page that lead to no file, or to no place of a page."""
    found = []
    for link in links:
        parts = urlsplit(link)
        if parts.scheme == "file":
            target = Path(unquote(parts.path))
            place = parts.fragment if target.suffix == ".html" else ""
            if place.startswith("/"):  # a slide, by its number
                continue
            if not target.is_file() or (place and not {place, unquote(place)} & names(target)):
                found.append(f"a link that leads nowhere: {link}")
    return found


def faults(tab, file):
    """What is wrong on a page, with all that folds on it unfolded."""
    tab.goto(file.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    tab.evaluate("document.fonts.ready.then(() => true)")
    links = tab.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.href)")
    return tab.wrong + tab.evaluate(FAULTS) + broken(file, links) + inaccessible(tab)


def inaccessible(tab):
    """What axe-core finds serious or critical on the page that is shown."""
    tab.add_script_tag(path=files("axe_playwright_python") / "axe.min.js")
    return tab.evaluate(AXE)


def built(folder):
    """The pages below a folder, to be tests each; one that is skipped where there are none.

    index.html is left out: it leads to the README's page at once.
    """
    pages = [file for file in sorted(folder.rglob("*.html")) if "_static" not in file.parts]
    pages = [file for file in pages if file != SITE / "index.html"]
    if not pages:
        skip = pytest.mark.skip(
            reason=f"no {folder.name} here; `make browser` builds what it opens"
        )
        return [pytest.param(None, marks=skip, id="not built")]
    return [pytest.param(file, id=str(file.relative_to(folder))) for file in pages]


@pytest.mark.parametrize("file", built(SITE))
def test_a_page_of_the_site_is_whole_accessible_and_asks_for_nothing(tab, file):
    found = faults(tab, file)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_of_an_executed_notebook_is_too(tab, notebook, tmp_path):
    """As `run` writes it beside the executed notebook."""
    copy = Path(shutil.copy(notebook, tmp_path))
    file = copy.with_suffix(".html")
    file.write_text(page.html(copy), encoding="utf-8")
    for other in NOTEBOOKS:  # a run leaves them side by side
        (tmp_path / other.name).touch()
    found = faults(tab, file)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", built(SLIDES))
def test_slides_are_whole_accessible_ask_for_nothing_and_fit_the_screen(tab, file):
    tab.goto(file.as_uri())
    heights = tab.evaluate(SLIDE_HEIGHTS)
    assert 9 <= len(heights) <= 18 and not [one for one in heights if one[1] > 720], heights
    found = faults(tab, Path(file))
    tab.goto(file.as_uri() + "?print-pdf")  # all slides, one below the other
    tab.wait_for_function("document.querySelectorAll('.pdf-page').length > 5")
    found += tab.evaluate(FAULTS) + inaccessible(tab)
    assert not found, "\n".join(found)
