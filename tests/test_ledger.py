"""The ledger: its list of claims, its verdicts on planted results, what it says of a run."""

import json
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from IPython.display import display

from lib import notebook, paths

NAME = "07_ledger"
BOOK = nbformat.read(paths.NOTEBOOKS / f"{NAME}.ipynb", 4)
CLAIMS = notebook.read_yaml((paths.ROOT / "docs" / "claims.yaml").read_text())
JUDGED = [name for name, claim in CLAIMS.items() if "evidence" in claim]
NOTEBOOKS = {path.stem[:2]: path.stem for path in paths.NOTEBOOKS.glob("0[1-6]_*.ipynb")}


def executed():
    """The ledger's globals, once all of its code has run in this process."""
    namespace = {"display": display}  # which every kernel has
    for cell in BOOK.cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
    plt.close("all")
    return namespace


def record(name, numbers=None, held=None):
    """What a notebook leaves: its numbers, and whether its claims held."""
    parameters = {parameter: value for parameter, (_, value) in notebook.declared(name).items()}
    checks = [
        {"claim": words, "held": was, "asserted": False} for words, was in (held or {}).items()
    ]
    return {
        "notebook": name, "parameters": parameters, "commit": notebook.commit() or "none",
        "seed": 0, "versions": notebook.versions(), "products": {}, "claims": checks,
        "numbers": numbers or {},
    }  # fmt: skip


# The list


def test_a_claim_says_whose_it_is_what_decides_and_where():
    fields = {"paper", "section", "kind", "claim", "says", "condition", "where"}
    for name, claim in CLAIMS.items():
        assert fields <= set(claim) <= fields | {"evidence", "beside", "needs"}, name
        assert claim["kind"] in ("stated", "inferred"), name
        assert "evidence" in claim or "needs" in claim, f"{name} can never have a verdict"
        assert claim["claim"].endswith(".") and claim["condition"].endswith("."), name
    assert len({claim["claim"] for claim in CLAIMS.values()}) == len(CLAIMS)


def test_the_sections_that_claims_name_are_there():
    headings = set()
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                headings |= set(re.findall(r"^## (\d\.\d+) ", cell.source, re.M))
    for name, claim in CLAIMS.items():
        assert set(claim["where"].split(", ")) <= headings, name


def test_what_decides_on_recorded_data_is_recorded(monkeypatch, tmp_path):
    """A key that is misspelt would leave its row open for ever."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.chdir(paths.NOTEBOOKS)
    found = executed()
    for name, claim in CLAIMS.items():
        for place in {**claim.get("evidence", {}), **claim.get("beside", {})}.values():
            if not place.startswith("here > "):
                assert not found["absent"](found["find"](place)), f"{name}: {place}"


# The verdicts, on planted results: what the claim says, and what must fail its condition

LEADS = ["edges_hits", "edges_times", "random_times", "edges_hits_here", "edges_times_here"]
LEADS += ["random_hits_here", "random_times_here"]
USED = {"deletion": -0.1, "deletion_low": -0.2, "insertion": 0.1, "insertion_high": 0.2}
USED |= {"deletion_retinas": -0.1, "deletion_low_retinas": -0.2}
ALIKE = [0.9, 0.9, 0.9001, 0.9, 0.9]
FIRST = [0.1, 0.3, 0.3, 0.3, 0.3]  # nearest in one training of five


def some(value):
    """About this value in each of five runs of a sweep."""
    return [value, value + 0.01, value - 0.01, value + 0.005, value - 0.005]


def over_readings(**values):
    """A value for each reading in a sweep over tolerances and readings."""
    return {f"tolerance=1 relu={reading}": value for reading, value in values.items()}


PLANTED = {
    "cam-score": ({"held": True, "error": 1e-7}, {"held": False, "error": 0.2}),
    "cam-pointing": ({"hits": 0.98, "chance": 0.1}, {"hits": 0.6, "chance": 0.1}, {"scenes": 300}),
    "cam-box": ({"at_20": 0.8}, {"at_20": 0.1}, {"best": 0.9, "level": 0.6, "scenes": 300}),
    "cam-gmp": ({"trainings": some(0.1)}, {"trainings": some(-0.1)}),
    "cam-gmp-classifies": ({"trainings": some(0.001)}, {"trainings": some(0.1)}),
    "cam-backpropagation": ({"trainings": some(0.1)}, {"trainings": some(-0.1)}),
    "cam-smoothed": ({"trainings": some(0.1)}, {"trainings": some(-0.1)}),
    "cam-full-supervision": ({"trainings": some(0.001)}, {"trainings": some(0.1)}),
    "cam-head-costs-little": ({"trainings": some(0.001)}, {"trainings": some(-0.1)}),
    "cam-regulariser": ({"trainings": some(0.1)}, {"trainings": some(-0.1)}),
    "cam-fully-connected": ({"flattened": 0.01}, {"flattened": 1.4}, {"pooled": 0.02}),
    "cam-units": ({"own": 18}, {"own": 4}, {"asked": 20, "chance": 0.2}),
    "clear-eq-1-3": ({"held": True}, {"held": False}, {"error": 1e-7}),
    "clear-eq-4-6": ({"held": True}, {"held": False}),
    "clear-accuracy": ({"accuracy": 0.9999}, {"accuracy": 0.98}, {"images": 10000}),
    "clear-right-answers": ({"share": some(0.5)}, {"share": some(0.1)}),
    "clear-mistakes": (
        {"answered": 50, "low": 0.7, "high": 0.95, "for_true": 4, "p": 1e-6},
        {"answered": 6, "low": 0.05, "high": 0.3, "for_true": 30, "p": 1e-4},
        {"mistakes": 60},
    ),
    "clear-table-1": (
        {"linear": some(0.3), "deconvnet": some(0.02), "gated": some(0.3), "guided": some(0.3)},
        {"linear": FIRST, "deconvnet": some(0.2), "gated": some(0.3), "guided": some(0.3)},
        {"gradient": some(0.3), "integrated": some(0.3)},
    ),
    "clear-reading": (
        {"linear": some(0.3), "deconvnet": some(0.02)},
        {"linear": FIRST, "deconvnet": some(0.2)},
        {"gated": some(0.3), "guided": some(0.3)},
    ),
    "clear-strong-matters": (
        {"guided": some(0.9)},
        {"guided": some(-0.5)},
        {"random": some(-0.2)},
    ),
    "clear-controls": (
        {"guided": some(0.9), "ink": some(0.6), "gradient": some(0.6)},
        {"guided": some(-0.5), "ink": some(0.6), "gradient": some(0.6)},
    ),
    "clear-determined": (
        {"linear": some(0.5), "deconvnet": some(0.5), "gated": some(0.5), "guided": some(0.5)},
        {"linear": some(0.1), "deconvnet": some(0.5), "gated": some(0.5), "guided": some(0.1)},
    ),
    "clear-switches": (
        {"spread_gain": 0.001, "corner_gain": 0.002},
        {"spread_gain": 0.001, "corner_gain": -0.2},
        {"spread_half": 0.01, "corner_half": 0.01},
    ),
    "clear-absolute": ({"gain": 0.001}, {"gain": -0.2}, {"half": 0.01}),
    "dr-eyes": ({"eyes": 53354}, {"eyes": 44351}, {"train": True, "test": True}),
    "dr-beyond-commonest": ({"majority": 0.6}, {"majority": 0.739}),
    "dr-sees-disease": (
        {"retinamnist_p": 1e-5, "retinas_p": 1e-5, "retinamnist": 0.6},
        {"retinamnist_p": 1e-5, "retinas_p": 0.2, "retinamnist": 0.4},
        {"retinas": 0.6},
    ),
    "dr-preparation": (
        {"split": True, "mean": True, "deviation": True},
        {"split": True, "mean": False, "deviation": True},
        {"photographs": 100, "rejected": 0},
    ),
    "dr-sequences": (
        {"sequences": 0.9, "sequences_retinas": 0.9},
        {"sequences": 0.9, "sequences_retinas": 0.4},
        {"pixels": 0.3, "pixels_retinas": 0.4, "n": 100, "n_retinas": 100},
    ),
    "dr-lesions": (
        {"random_hits": 0.1, "random_hits_high": 0.3},
        {"random_hits": -0.3, "random_hits_high": -0.1},
        {
            **dict.fromkeys(LEADS, 0.2),
            **dict.fromkeys((f"{lead}_high" for lead in LEADS), 0.4),
            **{"hits": 0.9, "chance": 0.1, "times": 4.0, "photographs": 54},
            **{"hits_here": 1.0, "times_here": 4.0},
        },
    ),
    "dr-frozen": (
        {"hits": 0.9},
        {"hits": 0.3},
        {"random": 0.6, "n": 100},
    ),
    "dr-colour": (
        {"agreed_retinas": 0.9},
        {"agreed_retinas": 0.4},
        {"agreed": 0.95, "chance": 0.2, "eyes": 100, "chance_retinas": 0.4},
    ),
    "dr-used": (
        {"insertion_retinas": 0.05, "insertion_high_retinas": 0.2},
        {"insertion_retinas": -0.2, "insertion_high_retinas": -0.05},
        USED,
    ),
    "dr-used-more-than-edges": (
        {"insertion_retinas": 0.05, "insertion_high_retinas": 0.2},
        {"insertion_retinas": -0.2, "insertion_high_retinas": -0.05},
        USED,
    ),
    "dr-lesion-taken-away": (
        {"difference": 0.6, "low": 0.5, "high": 0.7},
        {"difference": -0.6, "low": -0.7, "high": -0.5},
        {"eyes": 16, "edges_low": -0.3, "edges_high": 0.1},
    ),
    "dr-sanity": (
        {"failing": "none", "failing_retinas": ["none"] * 5},
        {"failing": "none", "failing_retinas": ["none"] * 4 + ["deconvnet, guided"]},
    ),
    "own-on-par": (
        {"accuracy": 0.6, "low": 0.55, "high": 0.65},
        {"accuracy": 0.4, "low": 0.35, "high": 0.45},
        {"auc": 0.8, "runs": 3},
    ),
    "own-machines": (
        {"digits": ALIKE, "grades": ALIKE, "kappa": ALIKE},
        {"digits": ALIKE, "grades": some(0.9), "kappa": ALIKE},
        {"pointing": ALIKE, "level": ALIKE},
    ),
    "own-one-kernel": (
        {"lost": 0.01, "high": 0.04, "p": 0.5, "only_kernels": 1, "only_connected": 1},
        {"lost": 0.15, "high": 0.2, "p": 0.001, "only_kernels": 1, "only_connected": 15},
        {"kernels": 0.9, "connected": 0.9},
    ),
    "own-default-reading": (
        {"phantoms": over_readings(linear=1.5, deconvnet=3.0, gated=2.5, guided=4.0)},
        {"phantoms": over_readings(linear=1.5, deconvnet=3.0, gated=2.5, guided=2.0)},
        {
            **{"guided": 4.0, "low": 3.5, "high": 4.5},
            **{"linear": 2.0, "deconvnet": 2.5, "gated": 3.0},
        },
    ),
}  # fmt: skip


def planted(folder, values):
    """Records of a run and of data/recorded/ that hold these values, by their places, alone."""
    runs, swept = {}, {}
    for place, value in values.items():
        source, number, *keys = place.split(" > ")
        if source.startswith("sweep "):
            swept.setdefault(source.removeprefix("sweep "), []).append((number, keys[0], value))
            continue
        numbers, held, asked = runs.setdefault((source, number), ({}, {}, {}))
        if keys[0] == "check":
            held[keys[1]] = value
            continue
        if keys[0] == "parameter":
            asked[keys[1]] = value
            continue
        for key in keys[:-1]:
            numbers = numbers.setdefault(key, {})
        numbers[keys[-1]] = value
    for (source, number), (numbers, held, asked) in runs.items():
        name = NOTEBOOKS[number]
        left = record(name, numbers, held)
        left["parameters"] |= asked
        home = folder / "bundled" / "metrics" if source == "here" else folder / "recorded" / source
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{name}.json").write_text(json.dumps(left))
    for sweep in (paths.RECORDED / "sweeps").iterdir():
        home = folder / "recorded" / "sweeps" / sweep.name
        home.mkdir(parents=True)
        lines = pd.read_csv(sweep / "results.csv", dtype={"notebook": str, "text": str}).head(0)
        if sweep.name not in swept:
            shutil.copy(sweep / "results.csv", home)
            continue
        rows = []
        for number, metric, series in swept[sweep.name]:
            if isinstance(series, list):
                series = {f"seed={run}": value for run, value in enumerate(series)}
            for point, value in series.items():
                column = "text" if isinstance(value, str) else "value"
                row = {"point": point, "notebook": NOTEBOOKS[number], "metric": metric}
                rows.append(row | dict(part.split("=") for part in point.split()) | {column: value})
        pd.concat([lines, pd.DataFrame(rows)]).to_csv(home / "results.csv", index=False)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The ledger of what every claim says, and that of what must fail it: two verdicts a claim."""
    found = []
    for which in (0, 1):
        values = {}
        for name, (*both, constant) in (
            (n, (*c, {}) if len(c) == 2 else c) for n, c in PLANTED.items()
        ):
            for word, value in {**constant, **both[which]}.items():
                place = CLAIMS[name]["evidence"][word]
                assert values.setdefault(place, value) == value, f"{name}: {place} is planted twice"
        folder = tmp_path_factory.mktemp("planted")
        planted(folder, values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paths, "BUILD", folder)
            patch.setattr(paths, "RECORDED", folder / "recorded")
            patch.chdir(paths.NOTEBOOKS)
            found.append({name: row["verdict"] for name, row in executed()["ledger"].items()})
    return found


def test_every_claim_with_a_condition_has_results_that_must_fail_it():
    assert sorted(PLANTED) == sorted(JUDGED)


@pytest.mark.parametrize("name", JUDGED)
def test_a_condition_holds_for_what_the_claim_says_and_fails_for_what_contradicts_it(judged, name):
    said, contradicted = judged[0][name], judged[1][name]
    assert said == "reproduced"
    assert contradicted in ("not reproduced", "consistent", "our stand-in fails")


# A run


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """A function that runs 07 on records made here; it returns the notebook's globals."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.chdir(paths.NOTEBOOKS)
    metrics = tmp_path / "bundled" / "metrics"
    metrics.mkdir(parents=True)
    found = {
        "01_cam_imagenet": {"pointing": {"value": 0.96, "chance": 0.1}, "test_scenes": 300},
        "03_dr_dataset": {"photographs": 9, "rejected": 0},
        "04_radiomic_sequencer": {"neighbours": {"sequences": 0.9, "pixels": 0.5}, "test": 104},
    }
    for name, numbers in found.items():
        (metrics / f"{name}.json").write_text(json.dumps(record(name, numbers)))

    def run():
        namespace = executed()
        namespace["verdicts"] = namespace["table"]["verdict"]
        return namespace

    run.metrics = metrics
    return run


def test_every_claim_of_the_list_has_one_row_and_every_row_its_claim(ledger):
    found = ledger()
    assert list(found["table"].index) == list(CLAIMS)
    assert set(found["ledger"]) == set(CLAIMS)
    assert set(found["verdicts"]) <= set(found["VERDICTS"])


def test_only_what_a_paper_states_is_counted_in_the_headline(ledger):
    found = ledger()
    stated = [name for name, claim in CLAIMS.items() if claim["kind"] == "stated"]
    assert found["stated"].to_numpy().sum() == len(stated)
    assert f"Of {len(stated)} claims that the papers state: " in found["headline"]
    times = (found["verdicts"][stated] == "reproduced").sum()
    assert f"{times} reproduced" in found["headline"]


def test_the_ledger_judges_the_numbers_of_this_run_and_says_what_was_not_run(ledger, capsys):
    found = ledger()
    assert found["verdicts"]["cam-pointing"] == "reproduced"
    assert found["verdicts"]["dr-sequences"] == "reproduced"
    assert found["verdicts"]["clear-accuracy"] == "reproduced"  # recorded in data/recorded
    assert found["verdicts"]["dr-lesions"] == "not run"
    assert found["verdicts"]["clear-svhn"] == "not checkable here"
    assert not found["table"]["flag"].any()
    said = capsys.readouterr().out
    assert "SKIPPED: the numbers of 02_clear_mnist, 05_clear_dr_figures, 06" in said
    assert "FLAGGED" not in said and "all of them of this commit" in said


def test_a_higher_accuracy_than_the_papers_is_no_difference(ledger, monkeypatch, tmp_path):
    recorded = tmp_path / "recorded"
    shutil.copytree(paths.RECORDED, recorded, ignore=shutil.ignore_patterns("*.png"))
    path = recorded / "mnist" / "02_clear_mnist.json"
    better = json.loads(path.read_text())
    better["numbers"]["accuracy"] = 1.0
    path.write_text(json.dumps(better))
    monkeypatch.setattr(paths, "RECORDED", recorded)
    assert ledger()["verdicts"]["clear-accuracy"] == "reproduced"


def test_the_ledger_flags_numbers_of_another_seed_or_commit_in_each_row_that_uses_them(
    ledger, capsys
):
    path = ledger.metrics / "04_radiomic_sequencer.json"
    old = json.loads(path.read_text()) | {"seed": 5, "commit": "a" * 40}
    path.write_text(json.dumps(old))
    found = ledger()
    flags = found["table"]["flag"]
    assert flags["dr-sequences"].startswith("04: commit aaaaaaa, here ")
    assert flags["dr-sequences"].endswith("; seed 5, here 0") and flags["cam-pointing"] == ""
    assert found["verdicts"]["dr-sequences"] == "reproduced"
    assert "FLAGGED: 04_radiomic_sequencer: commit aaaaaaa" in capsys.readouterr().out
    assert found["fig"].get_suptitle() == "Verdicts, by paper (run bundled; flagged: 04)"
    made = json.loads((ledger.metrics / "07_ledger.json").read_text())
    assert made["data"].endswith("04_radiomic_sequencer; flagged: 04")


CLAIM = {"claim": "it is found", "value": 0.8, "bound": ">= 0.9", "held": False}


@pytest.mark.parametrize("asserted", [True, False])
def test_the_ledger_flags_other_parameters_and_a_claim_that_failed_where_it_was_made(
    ledger, asserted
):
    path = ledger.metrics / "01_cam_imagenet.json"
    other = json.loads(path.read_text())
    other["parameters"]["epochs"] = 9
    other["claims"] = [CLAIM | {"asserted": asserted}]
    path.write_text(json.dumps(other))
    found = ledger()
    flags = found["table"]["flag"]
    expected = "01: epochs=9, other than in the profile"
    if asserted:
        expected += "; its claim failed: it is found: 0.8, bound >= 0.9"
    assert flags["cam-pointing"] == expected and flags["dr-sequences"] == ""
    assert found["verdicts"]["cam-pointing"] == "reproduced"


def test_the_ledger_counts_how_often_each_reading_is_near_table_1(ledger, monkeypatch, tmp_path):
    recorded = tmp_path / "recorded"
    shutil.copytree(paths.RECORDED, recorded, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(paths, "RECORDED", recorded)
    file = recorded / "sweeps" / "mnist" / "results.csv"
    table = pd.read_csv(file)
    table = table[(table.seed < 2) & (table.epochs == 1)]
    for seed in (0, 1):
        for reading, distance in (
            ("linear", 0.2), ("deconvnet", 0.03), ("gated", 0.01 + 0.1 * seed), ("guided", 0.3),
            ("gradient", 0.04), ("integrated gradients", 0.4),
        ):  # fmt: skip
            line = (table.seed == seed) & (table.metric == f"table1.{reading}.distance")
            assert line.sum() == 1
            table.loc[line, "value"] = distance
    table.to_csv(file, index=False)
    found = ledger()
    assert found["verdicts"]["clear-table-1"] == "consistent"  # the gradient is always near, too
    assert found["ledger"]["clear-table-1"]["recorded"].startswith(
        "within 0.05, of 2 trainings: linear 0, deconvnet 2, gated 1, guided 0, gradient 2, integr"
    )
    assert found["verdicts"]["clear-reading"] == "not reproduced"
    assert found["ledger"]["clear-reading"]["recorded"] == (
        "nearest of 2 trainings: gated in 1, deconvnet in 1 (MNIST)"
    )


def test_the_ledger_does_not_judge_what_rests_on_a_notebook_that_failed(ledger, capsys):
    earlier = ledger.metrics.parent / "earlier" / "metrics"
    earlier.mkdir(parents=True)
    (ledger.metrics / "03_dr_dataset.json").rename(earlier / "03_dr_dataset.json")
    found = ledger()
    assert found["verdicts"]["dr-sequences"] == "not run"
    assert found["verdicts"]["cam-pointing"] == "reproduced"
    assert "04 03 was begun again and has not ended well" in capsys.readouterr().out


def test_the_committed_table_shows_every_claim_its_condition_and_its_verdict():
    texts = []
    for cell in BOOK.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("data", {}).get("text/markdown", ""))
    lines = [line for text in texts for line in text.splitlines() if line.startswith("| ")]
    shown = [re.split(r"(?<!\\)\|", line) for line in lines]
    for claim in CLAIMS.values():
        whole = claim["claim"].replace("|", "\\|")
        (row,) = [cells for cells in shown if cells[1].startswith(f" {whole} *{claim['kind']}*")]
        assert row[2].strip() == claim["condition"].replace("|", "\\|")
        assert re.fullmatch(r" \*\*[a-z -]+\*\* ", row[4])
        assert f"[{claim['where'].split(', ')[0]}](0{claim['where'][0]}_" in row[5]
