"""The prepare step when workers differ, are killed, find the disk full or another run: always the same bytes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from unittest import mock

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from test_fundus import contents, rejects, write

from lib import paths
from lib.data import fundus
from lib.data import retina as cropping

SIZE = 24
BAD = {
    "10_right": r"duplicate of 11_right of grade 0; its own grade is 1",
    "11_right": r"duplicate of 10_right of grade 1; its own grade is 0",
    "13_right": r"duplicate of 12_right of grade 0; its own grade is 0",
    "14_left": r"truncated: image file is truncated",
    "15_left": r"unreadable: cannot identify image file",
    "16_left": r"no retina found: the frame varies by 0\.0",
    "17_left": r"mask unreadable: cannot identify",
    "18_left": r"no photograph",
    "99_left": r"no label",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Both eyes of 30 patients with what goes wrong in reality, `BAD`."""
    raw = write(tmp_path_factory.mktemp("raw") / "raw", [0] * 16 + [1] * 14)
    train = raw / "train"
    for name, twin in (("10_right", "11_right"), ("13_right", "12_right")):
        (train / f"{name}.jpeg").write_bytes((train / f"{twin}.jpeg").read_bytes())
    (train / "14_left.jpeg").write_bytes((train / "14_left.jpeg").read_bytes()[:900])
    (train / "15_left.jpeg").write_text("<html>403</html>")
    Image.new("RGB", (96, 80)).save(train / "16_left.jpeg")
    (raw / "masks" / "17_left.png").write_text("no mask")
    (train / "18_left.jpeg").rename(train / "99_left.jpeg")
    labels = pd.read_csv(raw / "trainLabels.csv")
    labels.loc[labels["image"] == "10_right", "level"] = 1
    labels.to_csv(raw / "trainLabels.csv", index=False)
    return raw


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    return fundus.prepare(raw, tmp_path_factory.mktemp("whole") / "undisturbed", SIZE, eye="both")


class Counting(ThreadPoolExecutor):
    """Two threads that write down which photographs they were given."""

    def __init__(self):
        super().__init__(2)
        self.names = []

    def submit(self, function, /, *arguments):
        self.names.append(arguments[0])
        return super().submit(function, *arguments)


def unfinished(out):
    """The folders of interrupted runs of `out`."""
    return sorted(out.parent.glob(f"{out.name}.*.partial"))


def journal(partial):
    """The whole lines of an interrupted run's journal."""
    path = partial / "journal.jsonl"
    return (
        [line for line in path.read_text().split("\n") if line.endswith("}")]
        if path.exists()
        else []
    )


def kept(partial):
    """The photographs that need not be prepared again: whole in the journal and, where not rejected, on disk."""
    records = map(json.loads, journal(partial))
    return {
        r["image"]
        for r in records
        if "reason" in r or (partial / "images" / f"{r['image']}.webp").exists()
    }


def lines(out):
    return sum(len(journal(partial)) for partial in unfinished(out))


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
    return answer


@pytest.fixture
def full_disk(monkeypatch):
    """Prepare until so many photographs are in the journal; then the disk is full."""

    def prepare(raw, out, photographs, *arguments, **settings):
        real = paths.write

        def writes(path, how):
            if path.parent.name == "images" and len([*path.parent.glob("*.webp")]) == photographs:
                until(lambda: lines(out) >= photographs)
                path.with_name(f"{path.name}.part").write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, how)

        with monkeypatch.context() as patch:
            patch.setattr(paths, "write", writes)
            with ThreadPoolExecutor(1) as thread:
                fundus.prepare(raw, out, *arguments, **settings, executor=thread)

    return prepare


# What is written


def test_every_photograph_is_in_the_manifest_or_among_the_rejects_with_a_reason(raw, undisturbed):
    manifest, reasons = pd.read_csv(undisturbed / "manifest.csv"), rejects(undisturbed)
    assert set(reasons.index) == set(BAD)
    for name, reason in BAD.items():
        assert pd.Series([reasons[name]]).str.match(reason).all(), reasons[name]
    everything = {path.stem for path in (raw / "train").iterdir()} | set(
        pd.read_csv(raw / "trainLabels.csv")["image"]
    )
    assert set(manifest["image"]) == everything - set(BAD) and manifest["image"].is_unique
    for folder, ending in (("images", "webp"), ("masks", "png")):
        files = {path.name for path in (undisturbed / folder).iterdir()}
        assert files == {f"{name}.{ending}" for name in manifest["image"]}


def test_the_manifest_says_what_was_taken_from_where(raw, undisturbed):
    manifest = pd.read_csv(undisturbed / "manifest.csv", dtype={"patient": str})
    columns = "image patient eye grade part left top right bottom width height sha256 source"
    assert manifest.columns.tolist() == columns.split()
    labels = pd.read_csv(raw / "trainLabels.csv").set_index("image")["level"]
    for row in manifest.itertuples():
        assert (
            f"{row.patient}_{row.eye}" == row.image
            and row.grade == labels[row.image]
            and row.source == "raw"
        )
        file = raw / "train" / f"{row.image}.jpeg"
        checksum = subprocess.run(
            ["sha256sum", file], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        assert row.sha256 == checksum and (row.width, row.height) == (96, 80)
        box = row.left, row.top, row.right, row.bottom
        assert (
            np.abs(np.subtract(box, (13, 5, 84, 76))).max() <= 2
        )  # a disc of radius 35 in the frame's centre
    assert (manifest.groupby("patient")["part"].nunique() == 1).all()


def test_the_data_set_says_how_it_was_made(raw, undisturbed):
    made = json.loads((undisturbed / "dataset.json").read_text())
    manifest = pd.read_csv(undisturbed / "manifest.csv")
    asked = {
        "source": "raw",
        "size": SIZE,
        "eye": "both",
        "test_share": 0.1,
        "seed": 0,
        "crop": True,
    }
    assert asked.items() <= made.items() and (made["contrast"], made["format"]) == ("none", "webp")
    assert made["rejected"] == len(BAD) and made["duplicates"] == 3
    assert made["versions"] == {name: version(name) for name in ("pillow", "numpy", "scipy")}
    counts = {
        part: {int(grade): n for grade, n in by.items() if n} for part, by in made["counts"].items()
    }
    assert counts == {
        part: rows["grade"].value_counts().to_dict() for part, rows in manifest.groupby("part")
    }
    names = manifest["image"][manifest["part"] == "train"]
    pixels = (
        np.stack(
            [np.asarray(Image.open(undisturbed / "images" / f"{name}.webp")) for name in names]
        )
        / 255
    )
    np.testing.assert_allclose(made["mean"], pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(made["std"], pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_a_part_too_large_for_memory_gives_the_same_items(undisturbed, monkeypatch):
    held = fundus.Prepared(undisturbed, "train")
    monkeypatch.setattr(fundus, "IN_MEMORY", 0)
    read = fundus.Prepared(undisturbed, "train")
    assert held.images is not None and read.images is None and len(held) == len(read) > 30
    for i in range(len(held)):
        assert torch.equal(held[i][0], read[i][0]) and held[i][1] == read[i][1]
        assert (held.photograph(i) == read.photograph(i)).all()


@pytest.mark.parametrize("format, most", [("webp", 0), ("jpeg", 0.06)])
def test_either_format_is_read_back(raw, undisturbed, tmp_path, format, most):
    part = fundus.Prepared(
        fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", format=format), "train"
    )
    reference = fundus.Prepared(undisturbed, "train")
    assert part.names == reference.names and torch.equal(part.mean, reference.mean)
    assert (part.images.float() - reference.images.float()).abs().mean() / 255 <= most
    assert {path.suffix for path in (tmp_path / "out" / "images").iterdir()} == {f".{format}"}


def test_graham_contrast_is_on_request(raw, undisturbed, tmp_path):
    out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", contrast="graham")
    for name in fundus.Prepared(out, "test").names:
        plain, normalised = (
            np.asarray(Image.open(folder / "images" / f"{name}.webp"))
            for folder in (undisturbed, out)
        )
        assert (normalised == cropping.graham(plain)).all() and (normalised != plain).any()


# Workers


@pytest.mark.parametrize("workers", ["a thread", "four threads", "two processes"])
def test_the_result_does_not_depend_on_the_workers(raw, undisturbed, tmp_path, workers):
    pools = {
        "a thread": lambda: ThreadPoolExecutor(1),
        "four threads": lambda: ThreadPoolExecutor(4),
    }
    with pools.get(workers, lambda: cropping.pool_of(2))() as executor:
        out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", executor=executor)
        assert executor.submit(max, 1, 2).result() == 2  # it is its owner's to shut down
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
@mock.patch.dict(
    os.environ
)  # Dask leaves OMP_NUM_THREADS=1 behind, which another process of a test would inherit
def test_the_result_of_a_dask_cluster_is_the_same(raw, undisturbed, tmp_path):
    from distributed import Client

    settings = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "processes": True,
        "dashboard_address": None,
    }
    with (
        Client(**settings, local_directory=tmp_path / "dask") as client,
        client.get_executor() as executor,
    ):
        out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", executor=executor)
        workers = {worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()}
    assert len(workers) == 2 and os.getpid() not in workers
    assert contents(out) == contents(undisturbed)


# Interruptions

PROGRAM = """
import sys
from lib.data import fundus, retina as cropping

if __name__ == "__main__":
    fundus.prepare(sys.argv[1], sys.argv[2], int(sys.argv[3]), eye="both", executor=cropping.pool_of(2))
"""
# Python runs this in each process at its start: no write is done before it can be killed before, within and after it.
SLOWLY = """
import random, time
from lib import paths

real = paths.write

def write(path, how):
    time.sleep(random.uniform(0, 0.02))
    real(path, lambda beside: (how(beside), time.sleep(random.uniform(0, 0.02))))

paths.write = write
"""


def killed(raw, out, photographs, seconds):
    """Kill -9 a process that prepares, so many seconds after it has that many more; its workers, when they ended."""
    before = lines(out)
    (out.parent / "sitecustomize.py").write_text(SLOWLY)
    places = os.pathsep.join([str(out.parent), str(paths.ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, raw, out, str(SIZE)],
        env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        until(
            lambda: (
                process.poll() is not None
                or (unfinished(out) and lines(out) >= before + photographs)
            )
        )
        time.sleep(seconds)
        assert process.poll() is None, "it had ended before it was killed"
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def ended(worker):
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

    until(lambda: all(map(ended, workers)))
    return workers


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_worker_and_goes_on_to_the_same_bytes(
    raw, undisturbed, tmp_path
):
    """Five times kill -9; then only what is missing is prepared, and every file is that of an undisturbed run."""
    out, moments, workers = tmp_path / "out", random.Random(), []
    for photographs in (0, 1, *moments.sample(range(2, 8), 3)):
        workers.append(killed(raw, out, photographs, moments.uniform(0, 0.06)))
        assert not out.exists() and len(unfinished(out)) == 1
    assert max(map(len, workers)) >= 2  # that there were workers to end
    (partial,) = unfinished(out)
    done = kept(partial)
    times = {
        path.name: path.stat().st_mtime_ns
        for path in (partial / "images").glob("*.webp")
        if path.stem in done
    }
    everything = {path.stem for path in (raw / "train").iterdir()} - {"99_left"}
    assert 0 < len(done) < len(everything)
    with Counting() as executor:
        assert fundus.prepare(raw, out, SIZE, eye="both", executor=executor) == out
    assert sorted(executor.names) == sorted(everything - done)
    assert contents(out) == contents(undisturbed) and not unfinished(out)
    for name in times.keys() & {path.name for path in (out / "images").iterdir()}:
        assert (out / "images" / name).stat().st_mtime_ns == times[name]


def test_a_full_disk_is_said_and_what_was_done_is_kept(raw, undisturbed, tmp_path, full_disk):
    out = tmp_path / "out"
    with pytest.raises(
        OSError, match=r"disk of .*out.*partial is full. Free some space and run again"
    ) as raised:
        full_disk(raw, out, 12, SIZE, eye="both")
    assert raised.value.errno == errno.ENOSPC and not out.exists()
    (partial,) = unfinished(out)
    done = kept(partial)
    assert len(done) >= 12
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert not done & set(executor.names) and len(executor.names) + len(done) == 59
    assert contents(out) == contents(undisturbed)


def test_a_journal_whose_last_line_was_cut_off_loses_that_photograph_alone(
    raw, undisturbed, tmp_path, full_disk
):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="full"):
        full_disk(raw, out, 12, SIZE, eye="both")
    (partial,) = unfinished(out)
    written = (partial / "journal.jsonl").read_text().rstrip("\n")
    last = json.loads(journal(partial)[-1])["image"]
    (partial / "journal.jsonl").write_text(written[:-7])
    done = kept(partial)
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert (
        last in executor.names
        and not done & set(executor.names)
        and len(executor.names) + len(done) == 59
    )
    assert contents(out) == contents(undisturbed)


def test_a_photograph_whose_file_went_missing_is_prepared_again(
    raw, undisturbed, tmp_path, full_disk
):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="full"):
        full_disk(raw, out, 12, SIZE, eye="both")
    (partial,) = unfinished(out)
    gone = sorted((partial / "images").glob("*.webp"))[5]
    gone.unlink()
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert gone.stem in executor.names and contents(out) == contents(undisturbed)


def test_an_error_in_the_last_step_costs_no_photograph(raw, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(fundus, "split", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fundus.prepare(raw, out, SIZE, eye="both")
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert executor.names == [] and contents(out) == contents(undisturbed)


def test_other_settings_are_another_folder_and_never_a_mixture(
    raw, undisturbed, tmp_path, full_disk
):
    """Two interrupted runs of two settings are finished in turn; the older data set is kept beside."""
    out = tmp_path / "out"
    for settings in ({"size": SIZE}, {"size": SIZE, "contrast": "graham"}):
        with pytest.raises(OSError, match="full"):
            full_disk(raw, out, 12, **settings, eye="both")
    assert len(unfinished(out)) == 2
    fundus.prepare(raw, out, SIZE, eye="both", contrast="graham")
    assert len(unfinished(out)) == 1
    graham = contents(out)
    assert contents(fundus.prepare(raw, out, SIZE, eye="both")) == contents(undisturbed)
    assert contents(tmp_path / "out.1") == graham and not unfinished(out)
    fundus.prepare(raw, out, SIZE, eye="both", contrast="graham")
    assert contents(out) == graham and contents(tmp_path / "out.2") == contents(undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.1", "out.2"}


def test_a_second_run_at_once_is_told_and_the_first_one_is_not_disturbed(
    raw, undisturbed, tmp_path
):
    out, go = tmp_path / "out", threading.Event()
    with ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        busy.submit(go.wait)
        try:
            first = other.submit(fundus.prepare, raw, out, SIZE, eye="both", executor=busy)
            until(lambda: unfinished(out) and (unfinished(out)[0] / "journal.jsonl").exists())
            for seed in (0, 1):
                with pytest.raises(
                    RuntimeError, match=r"Another run is preparing .*out: wait until it has ended"
                ):
                    fundus.prepare(raw, out, SIZE, eye="both", seed=seed)
        finally:
            go.set()
        assert first.result() == out
    assert contents(out) == contents(undisturbed) and {
        path.name for path in tmp_path.iterdir()
    } == {"out"}
    assert fundus.prepare(raw, out, SIZE, eye="both") == out


def test_a_failed_run_does_not_keep_the_next_one_out(raw, tmp_path):
    with pytest.raises(ValueError, match="too few patients"):
        fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", test_share=0.01)
    assert fundus.prepare(raw, tmp_path / "out", SIZE, eye="both").exists()
