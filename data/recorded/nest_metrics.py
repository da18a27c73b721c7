"""Nest the recorded metrics, once: `times_chance_low` becomes `times_chance: {low}`, and so on.

Until November 2026 a notebook recorded its numbers under flat keys glued from words. Each rule
below names a flat key and the path it has now; a key without a rule keeps its place at the top.
Values are not touched. A file that says `converted` is left as it is.
"""

import json
import re
from pathlib import Path

RECORDED = Path(__file__).parent
RENAMED = {"05_clear_dr_figures": "06_clear_dr_scored"}
CONVERTED = {
    "by": "data/recorded/nest_metrics.py",
    "on": "2026-11-25",
    "what": "flat keys nested; values unchanged",
}
SCORES = "accuracy|balanced_accuracy|kappa|auc_referable"
READINGS = "linear|deconvnet|gated|guided"
RULES = {
    "02_clear_mnist": {
        r"table1_nearest": r"table1/nearest",
        r"table1 (distance|t|area|apart), (.+)": r"table1/\2/\1",
        r"table1 (only|without) strong, (.+)": r"table1/\2/\1_strong",
        r"share_true_(.+)": r"share_true/\1",
    },
    "03_dr_dataset": {
        r"(train|val|test)": r"splits/\1",
        r"eyepacs_right_eyes": r"eyepacs/right_eyes",
        r"eyepacs_majority_(.+)": r"eyepacs/majority/\1",
    },
    "04_radiomic_sequencer": {
        rf"({SCORES})": r"\1/value",
        rf"({SCORES}) from": r"\1/low",
        rf"({SCORES}) to": r"\1/high",
        r"auc \(MedMNIST\)": r"auc_medmnist",
        r"recall of grade (.)": r"recall/\1",
        r"sensitivity at (.+)": r"sensitivity/\1",
        r"objective (.+), (.+)": r"objectives/\1/\2",
        r"calibration_error": r"calibration_error/as_trained",
        r"calibration_error_scaled": r"calibration_error/scaled",
        r"neighbours_on_(.+)": r"neighbours/\1",
    },
    "05_clear_dr_figures": {
        r"photographs_with_lesions": r"lesions/any lesion/photographs",
        r"pointing_game": r"lesions/any lesion/pointing/value",
        r"share_in_lesions": r"lesions/any lesion/inside/value",
        r"(chance|precision)": r"lesions/any lesion/\1/value",
        r"times_chance": r"lesions/any lesion/times_chance/value",
        r"median_times_chance": r"lesions/any lesion/median_times/value",
        r"pointing_(low|high)": r"lesions/any lesion/pointing/\1",
        r"times chance_(low|high)": r"lesions/any lesion/times_chance/\1",
        r"median times_(low|high)": r"lesions/any lesion/median_times/\1",
        rf"pointing, ({READINGS}|edges), (.+)": r"controls/\1/\2/pointing",
        r"times chance, (.+?), (.+)": r"controls/\1/\2/times_chance",
        r"(pointing|inside|precision|chance), (.+)": r"lesions/\2/\1/value",
        r"pointing_game_(.+)": r"methods/\1/pointing",
        r"(times_chance|precision)_(.+)": r"methods/\2/\1",
        r"(deletion|insertion)_(.+)": r"\1/\2",
        r"sanity_(.+)_class_kernels": r"sanity/\1/class_kernels_random",
        r"sanity_(.+)": r"sanity/\1/all_random",
        r"agreement": r"agreement/value",
        r"agreement_by_chance": r"agreement/chance",
    },
}


def path_of(flat_key, rules):
    """The keys under which the number of `flat_key` is now."""
    for pattern, path in rules.items():
        match = re.fullmatch(pattern, flat_key)
        if match:
            return match.expand(path).split("/")
    return [flat_key]


def nest(flat, rules):
    """The numbers of `flat`, nested; ValueError unless each is there, and no other."""
    nested = {}
    for flat_key, value in flat.items():
        *outer, last = path_of(flat_key, rules)
        place = nested
        for key in outer:
            place = place.setdefault(key, {})
        if last in place:
            raise ValueError(f"{flat_key!r} would overwrite another number.")
        place[last] = value
    for flat_key, value in flat.items():
        found = nested
        for key in path_of(flat_key, rules):
            found = found[key]
        if found is not value:
            raise ValueError(f"{flat_key!r} has become {found!r}, it was {value!r}.")
    if count(nested) != len(flat):
        raise ValueError(f"{len(flat)} numbers have become {count(nested)}.")
    return nested


def count(numbers):
    """How many numbers and texts nested dictionaries hold."""
    if not isinstance(numbers, dict):
        return 1
    return sum(count(value) for value in numbers.values())


def convert(path):
    """Nest one recorded file, say so in it, and name it after the notebook that records it now."""
    record = json.loads(path.read_text())
    if "converted" in record:
        return
    numbers = nest(record.pop("numbers"), RULES[record["notebook"]])
    converted = dict(CONVERTED)
    if record["notebook"] in RENAMED:
        before, now = record["notebook"], RENAMED[record["notebook"]]
        converted["what"] += f"; recorded by notebook {before}, whose scores are in {now} now"
        record["notebook"] = now
    record |= {"converted": converted, "numbers": numbers}
    written = path.with_name(f"{record['notebook']}.json")
    written.write_text(json.dumps(record, indent=2) + "\n")
    if written != path:
        path.unlink()
    print(f"{written.relative_to(RECORDED)}: {count(numbers)} numbers")


if __name__ == "__main__":
    for path in sorted(RECORDED.glob("*/*.json")):
        convert(path)
