"""The lecturer's guide against the notebooks: sections, minutes, cells, terms, questions."""

import re

import nbformat
import pytest
from PIL import Image

from lib import paths
from lib.data import retina

import make_guide

FOLDER = make_guide.FOLDER
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
TABLE = make_guide.sections()
REMADE = "run make guide"


CELLS = [
    cell
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))
    for cell in nbformat.read(path, 4).cells
]


def code_of_sections():
    """The code of each section of the notebooks, one text."""
    found = {}
    section = ""
    for cell in CELLS:
        if cell.cell_type == "markdown":
            for number, _ in make_guide.SECTION.findall(cell.source):
                section = number
        elif section:
            found[section] = found.get(section, "") + cell.source + "\n"
    return found


CODE = code_of_sections()
MISTAKES = re.findall(r"^\| (\".+?\") \| .+ \| (\d\.\d+) `(.+)` \|$", PAGES["README.md"], re.M)


def test_every_section_has_its_minutes_and_no_other_cell_has_any():
    numbers = [number for number, _, _ in make_guide.headings()]
    assert list(TABLE.index) == numbers and len(set(numbers)) == len(numbers)
    assert (TABLE.weeks > 0).all()
    kept = [cell.metadata["minutes"] for cell in CELLS if "minutes" in cell.metadata]
    assert sorted(number for minutes in kept for number in minutes) == sorted(numbers)


def test_a_section_without_minutes_is_named_with_what_is_wanted(monkeypatch):
    without = [("1.1", "What pooling forgets", {"minutes": {"1.2": {}}})]
    monkeypatch.setattr(make_guide, "headings", lambda: without)
    with pytest.raises(ValueError, match=r"1\.1 What pooling forgets: .*'half_day'.* are wanted"):
        make_guide.sections()


def test_every_exercise_belongs_to_one_section_of_its_notebook():
    numbers = [
        (number, section) for section, row in TABLE.iterrows() for number in row.weeks_exercises
    ]
    assert sorted(number for number, _ in numbers) == sorted(make_guide.minutes_of_exercises())
    assert all(number[0] == section[0] for number, section in numbers)


def test_the_plans_add_up_to_what_they_promise():
    def total(rows, plan):
        return int((rows[plan] + rows[f"{plan}_practice"]).sum())

    assert total(TABLE, "short") == 90
    assert total(TABLE, "half_day") == 210 and "210 minutes" in PAGES["README.md"]
    weeks = [total(rows, "weeks") for _, rows in TABLE.groupby("week")]
    assert len(weeks) == 4 and max(weeks) <= 240 and "240 minutes a week" in PAGES["README.md"]
    assert TABLE.week.is_monotonic_increasing
    for plan in ("short", "half_day"):
        assert not (TABLE[plan] > TABLE.weeks).any()
        for _, row in TABLE.iterrows():
            assert set(row[f"{plan}_exercises"]) <= set(row.weeks_exercises)


def test_the_sections_that_the_plan_of_90_minutes_names_are_those_that_it_has():
    text = PAGES["README.md"].split("**90 minutes**")[1].split("**Half a day**")[0]
    assert set(re.findall(r"\d\.\d+", text)) == set(TABLE.index[TABLE.short > 0])


def test_the_table_of_minutes_is_the_one_that_is_made():
    assert make_guide.guide(PAGES["README.md"]) == PAGES["README.md"], REMADE
    assert "| **together** | **90** " in PAGES["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_sections_and_files_that_a_page_names_are_there(page):
    text = PAGES[page]
    prose = re.sub(r"<!-- minutes: begin.*?minutes: end -->", "", text, flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose)
    prose = re.sub(r"[eE]xercises? \d\.\d|\d+\.\d+ %|\$[^$]*\$", "", prose)
    named = set(re.findall(r"(?<![\d.])[1-7]\.\d+\b", prose))
    assert named and not named - set(TABLE.index), named - set(TABLE.index)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / target).exists(), target
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors(text)


def test_there_are_wrong_answers_to_expect_for_every_notebook():
    assert len(MISTAKES) >= 15 and {section[0] for _, section, _ in MISTAKES} == set("1234567")


@pytest.mark.parametrize(("says", "section", "line"), MISTAKES)
def test_the_cell_that_refutes_a_wrong_answer_is_in_its_section(says, section, line):
    assert line in CODE[section], f"no cell of {section} has the line {line} any more"


def test_the_guide_has_questions_a_stop_and_what_to_skip_for_every_notebook():
    parts = re.split(r"^### \d · ", PAGES["README.md"], flags=re.M)[1:]
    assert len(parts) == 7
    for part in parts:
        assert all(f"**{word}**" in part for word in ("Stop", "Ask", "Skip"))


def anchors(text):
    """The anchors that GitHub and the site give the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def entries(part):
    """The terms of a part of the glossary: (term, its picture if it has one, its text)."""
    pattern = r"### (.+)\n\n(?:!\[.{15,}\]\(pictures/(.+)\.jpeg\)\n\n)?(.+ \(\d\.\d+\)\.)"
    blocks = re.split(r"^(?=### )", part, flags=re.M)[1:]
    return [re.fullmatch(pattern, block.strip()).groups() for block in blocks]


EYE, ALL_ELSE = PAGES["glossary.md"].split("\n## A to Z\n")


def test_the_glossary_has_sixty_terms_in_order_each_a_heading_with_its_section():
    terms = [term for term, _, _ in entries(ALL_ELSE)]
    assert len(terms) >= 60 and terms == sorted(terms, key=str.casefold)
    headings = re.findall(r"^### .+$", PAGES["glossary.md"], re.M)
    assert len(headings) == len(terms) + len(entries(EYE)) == len(anchors("\n".join(headings)))


@pytest.mark.parametrize("path", sorted(paths.NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_link_of_a_notebook_into_the_glossary_leads_to_a_term(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    linked = re.findall(r"\]\(\.\./teaching/glossary\.md(?:#([^)]*))?\)", text)
    assert not set(linked) - anchors(PAGES["glossary.md"])
    assert len(set(linked)) == len(linked), "each once in a notebook"


def test_disc_fovea_and_every_lesion_have_a_picture_with_alt_text():
    pictures = {kind: term for term, kind, _ in entries(EYE)}
    assert set(pictures) == {*retina.MASKS, "fovea"}
    assert {path.stem for path in (FOLDER / "pictures").iterdir()} == set(pictures)
    for kind, term in pictures.items():
        file = FOLDER / "pictures" / f"{kind}.jpeg"
        assert Image.open(file).size == (128, 128) and file.stat().st_size < 15_000
        assert re.sub("[^a-z]", "", term) == kind.replace("_", "")


def test_the_quiz_has_twenty_questions_each_with_an_answer_and_a_section():
    questions = re.findall(
        r"^\*\*(\d+)\.\*\* [^*]+?\s\((\d\.\d+)\)\n\n<details><summary>Answer</summary>[^<]{10,}"
        r"</details>$", PAGES["quiz.md"], re.M)  # fmt: skip
    assert [int(number) for number, _ in questions] == list(range(1, 21))
    sections = [[int(part) for part in section.split(".")] for _, section in questions]
    assert sections == sorted(sections)
    assert {section[0] for section in sections} == set(range(1, 8))
