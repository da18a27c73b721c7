"""Photographs on disk: each explained or listed with the reason, nothing lost, nothing stale."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file

from lib import __main__, explain, paths, photographs, results
from lib.data import fundus, phantom, retina
from lib.learning import networks


@pytest.fixture
def folder(tmp_path):
    """Five phantoms of different sizes, a black frame and a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for grade in range(5):
        image = np.pad(
            phantom.draw_photograph(grade, grade, 120 + 30 * grade)[0], ((5, 5), (30, 30), (0, 0))
        )
        Image.fromarray(image).save(folder / f"eye{grade}.png")
    Image.new("RGB", (200, 150)).save(folder / "black.png")
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_every_photograph_gets_what_its_prepared_twin_gets_or_is_listed(
    sequencer, folder, tmp_path
):
    out = tmp_path / "out"
    command = ["explain", str(folder), "--sequencer", str(sequencer), "--out", str(out)]
    assert __main__.main(command) == 0
    table = pd.read_csv(out / "results.csv", index_col="image")
    rejects = pd.read_csv(out / "rejects.csv")
    assert sorted(rejects.image) == ["black.png", "page.jpg"] and len(table) == 5
    assert rejects.to_string().count("no retina found") == 1

    splits = ("test", "val", "train", "train", "train")
    rows = [(f"eye{grade}", grade, split) for grade, split in enumerate(splits)]
    labels = pd.DataFrame(rows, columns=["image", "level", "split"])
    labels.to_csv(folder / "labels.csv", index=False)
    prepared = fundus.prepare(folder, tmp_path / "set", 64, "both")
    network, config = explain.load_sequencer(sequencer)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    for grade, split in enumerate(splits):
        data = fundus.FundusDataset(prepared, split)
        pixels = data.photograph(data.names.index(f"eye{grade}"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        with torch.no_grad():
            p = network(((image - mean) / std)[None]).softmax(1)[0].numpy()
        row = table.loc[f"eye{grade}.png"]
        np.testing.assert_allclose(row[[f"p{g}" for g in range(5)]].to_numpy(float), p, atol=1e-4)
        assert row["grade"] == p.argmax() and (out / row["figure"]).exists()

    before = (out / "results.csv").read_bytes()
    (folder / "labels.csv").unlink()
    __main__.main(command)
    assert (out / "results.csv").read_bytes() == before


def test_what_was_interrupted_goes_on_and_explains_nothing_twice(
    sequencer, folder, tmp_path, monkeypatch
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    write, drawn = paths.write, []
    photographs.explain_files([folder], sequencer, whole)

    def stopping(path, save):
        if path.suffix == ".png":
            drawn.append(path.name)
            if len(drawn) == 3:
                raise KeyboardInterrupt
        write(path, save)

    monkeypatch.setattr(paths, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        photographs.explain_files([folder], sequencer, out)
    assert len(pd.read_csv(out / "results.csv")) == 2
    with open(out / "journal.jsonl", "a") as journal:
        journal.write('\n{"image": "eye9.png", "grade": 3, "p')  # a line that was cut off
    (out / "results.csv").unlink()  # as kill -9 leaves it
    count, rejects = photographs.explain_files([folder], sequencer, out)
    assert count == 5 and {path.name for path in rejects} == {"black.png", "page.jpg"}
    assert drawn == ["eye0.png", "eye1.png", "eye2.png", "eye2.png", "eye3.png", "eye4.png"]
    assert (out / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_without_figures_there_are_the_same_tables_and_figures_can_follow(
    sequencer, folder, tmp_path, capsys
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    photographs.explain_files([folder], sequencer, whole)
    command = ["explain", str(folder), "--sequencer", str(sequencer), "--out", str(out)]
    for _ in range(2):
        assert __main__.main([*command, "--no-figures"]) == 0
        printed = "".join(capsys.readouterr())
        assert "5 explained, 2 rejected: results.csv and rejects.csv are in" in printed
        assert not list(out.glob("*.png"))
    expected = results.read_results(whole / "results.csv")
    table = results.read_results(out / "results.csv")
    assert (table.figure == "").all()
    assert table.drop(columns="figure").equals(expected.drop(columns="figure"))
    assert (out / "rejects.csv").read_bytes() == (whole / "rejects.csv").read_bytes()
    assert photographs.explain_files([folder / "eye0.png"], sequencer, out) == (1, {})
    assert [file.name for file in out.glob("*.png")] == ["eye0.png"]
    assert len(results.read_results(out / "results.csv")) == 5
    assert __main__.main(command) == 0
    # In the order in which they were done.
    assert results.read_results(out / "results.csv").equals(expected)
    before = contents(out)
    assert __main__.main([*command, "--no-figures"]) == 0 and contents(out) == before


def test_beyond_the_rim_of_its_configuration_a_sequencer_sees_nothing(sequencer, tmp_path):
    """A spot near the edge changes the answer of a network that sees it, and of this one not."""
    image = phantom.draw_photograph(2, 0, 200)[0]
    eyes = tmp_path / "eyes"
    eyes.mkdir()
    Image.fromarray(image).save(eyes / "plain.png")
    image[97:103, 3:9] = 255
    Image.fromarray(image).save(eyes / "spot.png")
    path = sequencer / "config.json"
    config = json.loads(path.read_text())
    scores = {}
    for rim in (1.0, 0.8):
        path.write_text(json.dumps(config | {"rim": rim}))
        photographs.explain_files([eyes], sequencer, tmp_path / str(rim), drawn=False)
        table = results.read_results(tmp_path / str(rim) / "results.csv").set_index("image")
        scores[rim] = table[[f"p{grade}" for grade in range(5)]]
    assert not scores[1.0].loc["plain.png"].equals(scores[1.0].loc["spot.png"])
    assert scores[0.8].loc["plain.png"].equals(scores[0.8].loc["spot.png"])


def test_without_a_name_the_published_sequencer_explains(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "WEIGHTS", tmp_path / "weights", raising=False)
    (tmp_path / "weights").mkdir()
    run.rename(tmp_path / "weights" / "retinas")
    eye = photograph(tmp_path / "eye.png")
    assert __main__.main(["explain", str(eye), "--out", str(tmp_path / "out")]) == 0
    made_by = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert made_by["sequencer"] == "retinas"
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["explain", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "for research and teaching only, not for clinical use" in said


def test_photographs_of_one_name_have_figures_of_their_own(sequencer, folder, tmp_path):
    (folder / "left").mkdir()
    Image.fromarray(phantom.draw_photograph(4, 9, 150)[0]).save(folder / "left" / "eye0.png")
    files = [folder / "eye0.png", folder / "left" / "eye0.png"]
    assert photographs.explain_files(files, sequencer, tmp_path / "out")[0] == 2
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table.figure.tolist() == ["eye0.png", "eye0-2.png"] and table.path.tolist() == [
        str(file) for file in files
    ]
    pictures = [(tmp_path / "out" / name).read_bytes() for name in table.figure]
    assert pictures[0] != pictures[1]


def sees_bright_spots(folder):
    """Make the run in `folder` one whose kernel of grade 4 responds to what is bright, no other."""
    network = networks.RadiomicSequencer()
    with torch.no_grad():
        for layer in network.features:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
                layer.weight[0, 0, 1, 1] = 1
        network.head.weight[4, 0] = 1
    save_file(network.state_dict(), folder / "weights.safetensors")


def test_the_box_surrounds_the_spot_that_the_network_sees_in_the_photographs_own_pixels(
    sequencer, tmp_path
):
    sees_bright_spots(sequencer)
    rows, columns = np.mgrid[:260, :400]
    retina_of_100 = np.hypot(columns - 240, rows - 130) < 100
    image = np.where(retina_of_100[..., None], 60, 0).astype(np.uint8).repeat(3, 2)
    image[170:186, 200:216] = 255
    Image.fromarray(image).save(tmp_path / "spot.png")
    photographs.explain_files([tmp_path / "spot.png"], sequencer, tmp_path / "out")
    (row,) = pd.read_csv(tmp_path / "out" / "results.csv").to_dict("records")
    (region,) = json.loads(row["regions"])
    left, top, right, bottom = region["box"]
    assert row["grade"] == 4 and row["share4"] == 1 and region["share"] == 1
    pixel = 200 / 64  # of the prepared photograph; the kernels see 2 of them beyond the spot
    for low, high, start, end in ((left, right, 200, 216), (top, bottom, 170, 186)):
        assert start - 6 * pixel <= low <= start + 2 * pixel
        assert end - 2 * pixel <= high <= end + 6 * pixel
    assert region["hour"] == 7  # 32 pixels left of the middle and 48 below
    assert region["distance"] == pytest.approx(np.hypot(32, 48) / 200, abs=0.03)


def test_results_of_another_sequencer_are_not_mixed_in(sequencer, folder, tmp_path):
    photographs.explain_files([folder / "eye0.png"], sequencer, tmp_path / "out")
    before = (tmp_path / "out" / "results.csv").read_bytes()
    weights = load_file(sequencer / "weights.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] + 1}, sequencer / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"holds other results of sequencer .* choose another folder"
    ):
        photographs.explain_files([folder], sequencer, tmp_path / "out")
    with pytest.raises(ValueError, match="holds other results"):
        photographs.explain_files([folder], sequencer, tmp_path / "out", relu="gated")
    assert (tmp_path / "out" / "results.csv").read_bytes() == before


def test_a_request_that_cannot_be_says_why(sequencer, folder, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no photographs \(.*jpeg.*\) in .*empty"):
        photographs.explain_files([tmp_path / "empty"], sequencer, out)
    with pytest.raises(FileNotFoundError, match=r"there is no .*eye9\.png"):
        photographs.explain_files([folder / "eye9.png"], sequencer, out)
    with pytest.raises(ValueError, match=r"relu is .best.; the readings of Eq\. 3 are"):
        photographs.explain_files([folder], sequencer, out, relu="best")
    assert not out.exists()
    command = ["explain", str(folder), "--sequencer", str(tmp_path / "nowhere"), "--out", str(out)]
    assert __main__.main(command) == 2 and "no finished training in" in capsys.readouterr().err


# Nothing of the user's is lost


def photograph(path, seed=0, grade=2):
    """Draw a small phantom to `path`, whatever its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom.draw_photograph(grade, seed, 120)[0]).save(path, "png")
    return path


@pytest.fixture
def run(sequencer, monkeypatch):
    """The sequencer, where it is not asked and nothing drawn: for what becomes of files."""
    eye = explain.Eye(1, np.eye(5)[1], np.zeros((5, 64, 64)), np.full(5, np.nan), [])
    blank = Figure((0.1, 0.1))
    monkeypatch.setattr(explain, "explain_images", lambda _, images, *by: [eye] * len(images))
    monkeypatch.setattr(explain, "draw_eye", lambda *given: blank)
    return sequencer


def contents(folder):
    """Every file below a folder with its bytes, but for the lock, which says who held it last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


def asks(capsys, sequencer, out, *photographs):
    """Run the command; its exit status and what it printed, which is no traceback."""
    given = [*map(str, photographs), "--sequencer", str(sequencer), "--out", str(out)]
    status = __main__.main(["explain", *given])
    printed = "".join(capsys.readouterr())
    assert "Traceback" not in printed
    return status, printed


@pytest.mark.parametrize("where", [".", "link", "sub/..", "sub/../../photos"])
def test_the_folder_of_the_photographs_is_never_the_output(run, tmp_path, capsys, where):
    photographs = tmp_path / "photos"
    photograph(photographs / "eye.png")
    (photographs / "sub").mkdir()
    (photographs / "link").symlink_to(photographs)
    before = contents(tmp_path)
    status, printed = asks(capsys, run, photographs / where, photographs)
    assert status == 2 and "choose another folder with --out" in printed
    assert contents(tmp_path) == before and len(list(photographs.iterdir())) == 3


@pytest.mark.parametrize("name", ["eye.png", "results.csv", "notes.txt", ".hidden", "explain.json"])
def test_a_folder_that_holds_anything_else_is_refused_and_left_as_it_is(
    run, tmp_path, capsys, name
):
    eye, out = photograph(tmp_path / "eye.png"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    status, printed = asks(capsys, run, out, eye)
    assert status == 2 and f"{out}" in printed and "--out" in printed
    assert contents(out) == {out / name: b"mine"} and len(list(out.iterdir())) == 1


def test_a_file_that_the_results_do_not_list_is_never_replaced(run, tmp_path):
    out, eyes = tmp_path / "out", tmp_path / "eyes"
    photographs.explain_files([photograph(eyes / "first.png")], run, out)
    for name in ("SECOND.PNG", "second-2.png", "results.csv.1"):
        (out / name).write_text("mine")
    notes = "my notes," + (out / "results.csv").read_text()
    (out / "results.csv").write_text(notes)
    photographs.explain_files([photograph(eyes / "second.png")], run, out)
    table = results.read_results(out / "results.csv")
    assert table.figure.tolist() == ["first.png", "second-3.png"]
    assert (out / "results.csv.2").read_text() == notes
    for name in ("SECOND.PNG", "second-2.png", "results.csv.1"):
        assert (out / name).read_text() == "mine"


def test_nothing_in_an_output_folder_is_taken_for_a_photograph(run, tmp_path):
    eyes = tmp_path / "eyes"
    out = eyes / "results" / "first"
    photograph(eyes / "eye.png")
    assert photographs.explain_files([eyes], run, out) == (1, {})
    photograph(out / "sub" / "figure.png")
    (eyes / "by_file.png").symlink_to(out / "eye.png")
    (eyes / "by_folder").symlink_to(out / "sub")
    count, rejects = photographs.explain_files([eyes], run, out)
    assert count == 1 and rejects == {eyes / "by_file.png": "link into the output folder"}
    for inside in (out / "eye.png", out / "sub", out / "sub" / "figure.png", eyes / "by_folder"):
        with pytest.raises(ValueError, match=r"lies in the output folder .* never taken"):
            photographs.explain_files([inside], run, out)
    (eyes / "by_file.png").unlink()
    (eyes / "by_folder").unlink()
    count, rejects = photographs.explain_files([eyes], run, tmp_path / "second")
    assert count == 1 and rejects == {out: "results of explain: no photographs"}


HOLDS = """
import sys
from pathlib import Path
from lib import paths
with paths.alone(Path(sys.argv[1]), "writing"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_of_two_into_one_folder_is_told_who_holds_it_and_the_lock_lies_inside(
    run, tmp_path, capsys
):
    eye, out = photograph(tmp_path / "eyes" / "eye.png"), tmp_path / "not" / "yet" / "out"
    out.mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, out / "results"], cwd=paths.ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    status, printed = asks(capsys, run, out, eye)
    assert status == 2 and f"process {other.pid} on" in printed and str(out) in printed
    assert [path.name for path in out.iterdir()] == ["results.lock"]
    other.kill()
    other.communicate()
    assert asks(capsys, run, out, eye)[0] == 0
    assert asks(capsys, run, tmp_path / "new" / "out", eye)[0] == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


# Only a photograph's own fault rejects it


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOENT, errno.EACCES]
)
def test_a_read_error_of_the_moment_rejects_nothing_and_the_command_goes_on_later(
    run, folder, tmp_path, capsys, monkeypatch, code
):
    out = tmp_path / "out"
    monkeypatch.setattr(photographs, "_WAITS", (0,))
    read, listdir, tries = Path.read_bytes, os.listdir, []

    def gone(path):
        if path.parent == folder and path.name in ("eye1.png", "eye3.png"):
            tries.append(path.name)
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    def no_folder(path="."):
        if Path(path) == folder:
            raise OSError(code, os.strerror(code), str(path))
        return listdir(path)

    with monkeypatch.context() as away:
        away.setattr(Path, "read_bytes", gone)
        away.setattr(os, "listdir", no_folder)
        status, printed = asks(capsys, run, out, folder)
    assert status == 2 and "2 photographs could not be read" in printed
    assert os.strerror(code) in printed and "goes on from there" in printed
    assert set(results.read_results(out / "rejects.csv").image) == {"black.png", "page.jpg"}
    assert len(results.read_results(out / "results.csv")) == 3
    assert tries.count("eye1.png") == (1 if code == errno.EACCES else 2)
    status, printed = asks(capsys, run, out, folder)
    assert status == 0 and "5 explained, 2 rejected" in printed


def test_a_drive_that_is_gone_is_not_asked_for_every_photograph(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_WAITS", ())
    read, tries = Path.read_bytes, []

    def gone(path):
        if path.parent != folder:
            return read(path)
        tries.append(path)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", gone)
    with pytest.raises(OSError, match="3 photographs could not be read"):
        photographs.explain_files([folder], run, tmp_path / "out")
    assert len(tries) == 3


def test_an_error_that_passes_at_once_is_not_even_noticed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_WAITS", (0, 0))
    eye = photograph(tmp_path / "eye.png")
    read, tries = Path.read_bytes, []

    def once(path):
        tries.append(path)
        if path == eye and tries.count(eye) < 3:
            raise InterruptedError(errno.EINTR, "Interrupted")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", once)
    assert photographs.explain_files([eye], run, tmp_path / "out") == (1, {})


def test_a_photograph_nobody_may_read_a_pipe_and_a_folder_are_rejects(run, tmp_path, monkeypatch):
    eyes, out = tmp_path / "eyes", tmp_path / "out"
    closed = photograph(eyes / "closed.png")
    photograph(eyes / "folder.png" / "eye.png")
    os.mkfifo(eyes / "pipe.jpg")
    (eyes / "device.jpg").symlink_to("/dev/zero")
    read = Path.read_bytes

    def denied(path):
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as now:
        now.setattr(Path, "read_bytes", denied)
        count, rejects = photographs.explain_files([eyes], run, out)
    assert count == 1 and rejects == {
        closed: "cannot be read: Permission denied",
        eyes / "pipe.jpg": "unreadable: not a regular file: pipe.jpg",
        eyes / "device.jpg": "unreadable: not a regular file: device.jpg",
    }
    assert photographs.explain_files([eyes], run, out)[0] == 2


# Content decides what is taken again


def test_a_photograph_that_was_replaced_is_explained_anew_even_with_size_and_time_kept(
    run, tmp_path, monkeypatch
):
    eyes, out = tmp_path / "eyes", tmp_path / "out"
    for number in range(3):
        image = phantom.draw_photograph(number, number, 120)[0]
        Image.fromarray(image).save(photograph(eyes / f"eye{number}.png"), "tiff", compression=None)
    photographs.explain_files([eyes], run, out)
    before = results.read_results(out / "results.csv").set_index("image")
    about = (eyes / "eye1.png").stat()
    image = phantom.draw_photograph(4, 9, 120)[0]
    Image.fromarray(image).save(eyes / "eye1.png", "tiff", compression=None)
    assert (eyes / "eye1.png").stat().st_size == about.st_size
    os.utime(eyes / "eye1.png", ns=(about.st_atime_ns, about.st_mtime_ns))
    os.utime(eyes / "eye2.png")  # touched, but the same

    drawn, draw = [], explain.draw_eye
    monkeypatch.setattr(explain, "draw_eye", lambda *given: drawn.append(given) or draw(*given))
    photographs.explain_files([eyes], run, out)
    photographs.explain_files([eyes], run, tmp_path / "fresh")
    after = results.read_results(out / "results.csv").set_index("image")
    assert len(drawn) == 1 + 3 and not after.loc["eye1.png"].equals(before.loc["eye1.png"])
    fresh = results.read_results(tmp_path / "fresh" / "results.csv").set_index("image")
    pd.testing.assert_frame_equal(after, fresh, atol=2e-4)


def test_a_repaired_photograph_leaves_the_rejects_and_a_broken_one_the_results(run, tmp_path):
    eyes, out = tmp_path / "eyes", tmp_path / "out"
    photograph(eyes / "b.png")
    (eyes / "a.png").write_bytes(b"broken")
    assert photographs.explain_files([eyes], run, out)[0] == 1
    whole = (eyes / "b.png").read_bytes()
    (eyes / "b.png").write_bytes(whole[:400])
    photograph(eyes / "a.png")
    count, rejects = photographs.explain_files([eyes], run, out)
    assert count == 1 and list(rejects) == [eyes / "b.png"]
    assert results.read_results(out / "results.csv").image.tolist() == ["a.png"]
    assert results.read_results(out / "rejects.csv").image.tolist() == ["b.png"]


def test_a_photograph_that_was_deleted_leaves_the_results_with_a_word(run, tmp_path):
    eyes, out = tmp_path / "eyes", tmp_path / "out"
    for name in ("a.png", "b.png", "c.bmp"):
        photograph(eyes / name)
    other = photograph(tmp_path / "other" / "d.png")
    assert photographs.explain_files([eyes, other], run, out)[0] == 3
    for gone in (eyes / "a.png", eyes / "c.bmp", other):
        gone.unlink()
    for _ in range(2):
        count, rejects = photographs.explain_files([eyes], run, out)
        assert count == 1 and rejects == {eyes / "a.png": "no longer there: a.png shows it"}
        # Of the other folder nothing was asked.
        assert results.read_results(out / "results.csv").image.tolist() == ["b.png", "d.png"]
        assert results.read_results(out / "rejects.csv").image.tolist() == ["a.png"]
    photograph(eyes / "a.png")
    assert photographs.explain_files([eyes], run, out) == (2, {})


def test_what_was_explained_and_rejected_of_another_folder_stays_in_the_tables(run, tmp_path):
    out = tmp_path / "out"
    for day in ("1", "2"):
        photograph(tmp_path / day / "eye.png", seed=int(day))
        (tmp_path / day / "page.jpg").write_text("<html>")
        count, rejects = photographs.explain_files([tmp_path / day], run, out)
        assert count == 1 and list(rejects) == [tmp_path / day / "page.jpg"]
    for table, file in (("results.csv", "eye.png"), ("rejects.csv", "page.jpg")):
        found = results.read_results(out / table).path.tolist()
        assert found == [str(tmp_path / day / file) for day in ("1", "2")]


@pytest.mark.parametrize(
    "change", [{"mean": [0.3, 0.2, 0.1]}, {"contrast": "graham"}, {"loss": "corn"}, {"note": "x"}]
)
def test_rows_of_another_configuration_are_not_mixed_in(run, tmp_path, capsys, change):
    eye, out = photograph(tmp_path / "eye.png"), tmp_path / "out"
    photographs.explain_files([eye], run, out)
    before = contents(out)
    path = run / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config, indent=4))  # the same, in other lines
    assert photographs.explain_files([eye], run, out) == (1, {}) and contents(out) == before
    path.write_text(json.dumps(config | change))
    status, printed = asks(capsys, run, out, eye, photograph(tmp_path / "new.png"))
    assert status == 2 and "config differ): choose another folder" in printed
    assert contents(out) == before


def test_scores_are_read_by_the_rule_of_the_loss_that_the_run_was_trained_with(sequencer, tmp_path):
    eyes = tmp_path / "eyes"
    for seed in range(4):
        photograph(eyes / f"{seed}.png", seed, seed)
    path = sequencer / "config.json"
    config = json.loads(path.read_text())
    weights = load_file(sequencer / "weights.safetensors")
    weights["head.weight"] *= 0.1  # so that it is not sure, and the rules differ
    weights["head.bias"] = torch.arange(5) * 0.5
    save_file(weights, sequencer / "weights.safetensors")
    network, _ = explain.load_sequencer(sequencer)
    mean, std = (np.reshape(config[name], (3, 1, 1)) for name in ("mean", "std"))
    S = []
    for seed in range(4):
        prepared, *_ = retina.extract((eyes / f"{seed}.png").read_bytes(), "", 64)
        x = (prepared.transpose(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            S.append(network(torch.tensor(x, dtype=torch.float32)[None])[0].double().numpy())
    S = np.array(S)
    softmax = np.exp(S) / np.exp(S).sum(1, keepdims=True)
    above = np.cumprod(1 / (1 + np.exp(-np.diff(S))), axis=1)  # P(y > k), Shi 2021
    corn = -np.diff(np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0))))
    rules = {
        "cross-entropy": (softmax, softmax.argmax(1)),
        "corn": (corn, (above > 0.5).sum(1)),
        "expected-grade": (softmax, np.floor(softmax @ np.arange(5) + 0.5)),
    }
    for loss, (probabilities, grades) in rules.items():
        path.write_text(json.dumps(config | {"loss": loss}))
        photographs.explain_files([eyes], sequencer, tmp_path / loss)
        table = results.read_results(tmp_path / loss / "results.csv")
        np.testing.assert_allclose(table[[f"p{g}" for g in range(5)]], probabilities, atol=2e-4)
        assert table.grade.tolist() == grades.tolist()
    assert (rules["corn"][1] != softmax.argmax(1)).any()
    assert (rules["expected-grade"][1] != softmax.argmax(1)).any()


@pytest.mark.parametrize("notebook", ["05_clear_dr_figures", "06_clear_dr_scored"])
def test_the_notebooks_take_the_rule_from_the_configuration_too(notebook):
    book = json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text())
    code = "".join(
        "".join(cell["source"]) + "\n" for cell in book["cells"] if cell["cell_type"] == "code"
    )
    assert 'loss = config["loss"]' in code or 'loss = config.get("loss", "cross-entropy")' in code
    assert "predicted = losses.answered_grades(probabilities, loss)" in code
    assert code.count("explain_images(") == code.count("relu, loss)")


# Nothing is left out without a word


def test_linked_folders_are_followed_once_and_all_that_is_left_out_is_listed(run, tmp_path, capsys):
    eyes, out = tmp_path / "eyes", tmp_path / "out"
    photograph(tmp_path / "elsewhere" / "deep" / "linked.png")
    for name in ("a.PNG", "sub/b.jpg", "c.bmp", "d.heic", "sub/e.GIF", "sub/f.bmp", "g"):
        photograph(eyes / name)
    (eyes / "sub" / "link").symlink_to(tmp_path / "elsewhere")
    (eyes / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "loop").symlink_to(eyes)
    (eyes / "itself").symlink_to(eyes)
    (eyes / "0.png").symlink_to(tmp_path / "nowhere")
    (eyes / "1.png").symlink_to("1.png")
    status, printed = asks(capsys, run, out, eyes)
    assert status == 0 and "3 explained, 7 rejected" in printed
    for line in ("2 rejected, c.bmp: ending .bmp", "1 rejected, d.heic: ending .heic",
                 "1 rejected, e.GIF: ending .GIF", "1 rejected, g: no ending",
                 "2 rejected, 0.png: link to nothing"):  # fmt: skip
        assert line in printed
    found = results.read_results(out / "results.csv").image.tolist()
    assert sorted(found) == ["a.PNG", "b.jpg", "linked.png"]
    rejected = results.read_results(out / "rejects.csv")
    assert set(rejected.image) == {"c.bmp", "d.heic", "e.GIF", "f.bmp", "g", "0.png", "1.png"}


def test_a_folder_that_cannot_be_listed_is_a_reject_or_stops_it(run, tmp_path, monkeypatch):
    eyes = tmp_path / "eyes"
    photograph(eyes / "eye.png")
    photograph(eyes / "closed" / "eye.png")
    scandir = os.scandir

    def refusing(code):
        def scan(path):
            if str(path).endswith("closed"):
                raise OSError(code, os.strerror(code), str(path))
            return scandir(path)

        return scan

    monkeypatch.setattr(os, "scandir", refusing(errno.EACCES))
    assert photographs.explain_files([eyes], run, tmp_path / "out") == (
        1,
        {eyes / "closed": "folder cannot be read: permission denied"},
    )
    monkeypatch.setattr(os, "scandir", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        photographs.explain_files([eyes], run, tmp_path / "out")
    monkeypatch.setattr(os, "scandir", scandir)
    assert photographs.explain_files([eyes], run, tmp_path / "out") == (2, {})
    assert results.read_results(tmp_path / "out" / "rejects.csv").empty


# Names as users have them


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has not every letter
def test_any_name_is_done_and_read_back(sequencer, tmp_path, capfd):
    names = ["$_$.png", "$\\frac$.png", "a\nb.png", "a\rb.png", "-rf.png", "=1+2.png", "@x.png",
             "\tx.png", "'=x.png", "'x.png", "NA.png", "Eye.png", "eye.png", "é.png", "e\u0301.png",
             "\\udcff.png", "\udcff.png", "a,\"b.png", "\x1b[2J.png", "x" * 247 + ".png",
             "眼" * 80 + ".png", "~x.png", "..png.png", " .png"]  # fmt: skip
    eyes, out = tmp_path / "eyes", tmp_path / "out"
    for name in names:
        photograph(eyes / name)
    bad = ["\udcfe.jpg", "=bad.jpg", "\n.jpg"]
    for name in bad:
        (eyes / name).write_bytes(b"x")
    command = ["explain", str(eyes), "--sequencer", str(sequencer), "--out", str(out)]
    assert __main__.main(command) == 0
    printed = "".join(capfd.readouterr())
    assert f"{len(names)} explained" in printed and "\x1b" not in printed
    table = results.read_results(out / "results.csv")
    rejects = results.read_results(out / "rejects.csv")
    assert sorted(table.image) == sorted(names) and sorted(rejects.image) == sorted(bad)
    assert table.path.tolist() == [str(eyes / name) for name in table.image]
    assert len({name.casefold() for name in table.figure}) == len(names)
    assert all((out / name).stat().st_size > 1000 for name in table.figure)
    for text in ((out / "results.csv").read_text(), (out / "rejects.csv").read_text()):
        assert not any(line.startswith(("=", "@", "-", "\t")) for line in text.splitlines())
    before = contents(out)
    assert __main__.main(command) == 0 and contents(out) == before


@given(some.text(some.characters(exclude_characters="/\0", min_codepoint=1)))
def test_a_cell_is_no_formula_and_says_which_name_it_was(name):
    name = name.encode("utf-8", "replace").decode() + "\udc80" * (len(name) % 2)
    cell = results._cell(name)
    assert cell.lstrip()[:1] not in ("=", "+", "-", "@") and cell[:1] not in ("\t", "\r", "\n")
    cell.encode()
    assert results._name(cell) == name


# Settings that somebody has changed


@pytest.mark.parametrize("text", [b"", b"[1]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["explain.json", "journal.jsonl", "results.csv", "rejects.csv"])
def test_a_changed_file_of_the_results_is_kept_and_no_traceback(run, tmp_path, capsys, name, text):
    eye, out = photograph(tmp_path / "eye.png"), tmp_path / "out"
    photographs.explain_files([eye], run, out)
    (out / name).write_bytes(text)
    before = contents(out)
    status, printed = asks(capsys, run, out, eye)
    if name == "explain.json" or (name, text) == ("journal.jsonl", b"\xff\xfe"):
        assert status == 2 and str(out / name) in printed and "--out" in printed
        assert contents(out) == before
        return
    assert status == 0 and len(results.read_results(out / "results.csv")) == 1
    after = set(contents(out).values())
    for path, data in before.items():
        assert path.suffix not in (".csv", ".png") or not data or data in after


def test_lines_of_the_journal_that_point_elsewhere_are_none_of_ours(run, tmp_path):
    eye, out = photograph(tmp_path / "eye.png"), tmp_path / "out"
    photographs.explain_files([eye], run, out)
    (tmp_path / "mine.png").write_text("mine")
    lines = (
        (out / "journal.jsonl").read_text().replace('"eye.png", "path"', '"../mine.png", "path"')
    )
    lines = lines.replace('"figure": "eye.png"', '"figure": "../mine.png"')
    (out / "journal.jsonl").write_text(lines + '\n[1]\n"x"\n{"path": 3, "figure": {}}\n')
    assert photographs.explain_files([eye], run, out) == (1, {})
    assert (tmp_path / "mine.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        ("[1]", "holds no settings"),
        ({"body": ["plain"]}, "body is"),
        ({"loss": "CORN"}, "loss is 'CORN'; known are cross-entropy"),
        ({"size": "64"}, "size is '64'"),
        ({"size": 0}, "size is 0; known are 16 to 2048"),
        ({"crop": "no"}, "crop is 'no'"),
        ({"contrast": None}, "contrast is None"),
        ({"mean": [0.1, 0.2]}, "mean is"),
        ({"std": [0.1, 0, 0.2]}, "std is"),
        ({"mean": [math.nan] * 3}, "mean is"),
        ({"epochs": 3}, "has no loss"),
    ],
)
def test_a_changed_configuration_is_one_sentence(sequencer, tmp_path, capsys, text, said):
    path = sequencer / "config.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text)
    status, printed = asks(capsys, sequencer, tmp_path / "out", photograph(tmp_path / "eye.png"))
    assert status == 2 and str(path) in printed and said in printed
    assert not (tmp_path / "out").exists() and len(printed.strip().splitlines()) == 1


def test_a_folder_whose_files_may_be_listed_but_not_opened_stops_nothing(
    run, tmp_path, monkeypatch
):
    eyes = tmp_path / "eyes"
    photograph(eyes / "eye.png")
    closed = photograph(eyes / "closed" / "eye.png")
    for name in ("stat", "lstat"):
        look = getattr(os, name)

        def denied(path, *given, look=look, **options):
            if str(path) == str(closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return look(path, *given, **options)

        monkeypatch.setattr(os, name, denied)
    rejects = {closed: "cannot be read: Permission denied"}
    assert photographs.explain_files([eyes], run, tmp_path / "out") == (1, rejects)


def test_weights_that_are_no_numbers_give_no_grade(sequencer, tmp_path, capsys):
    weights = load_file(sequencer / "weights.safetensors")
    weights["head.bias"][2] = math.nan
    save_file(weights, sequencer / "weights.safetensors")
    status, printed = asks(capsys, sequencer, tmp_path / "out", photograph(tmp_path / "eye.png"))
    assert status == 2 and "NaN" in printed


def test_an_output_that_cannot_be_written_is_one_sentence(run, tmp_path, capsys, monkeypatch):
    eye = photograph(tmp_path / "eye.png")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/out"):
        status, printed = asks(capsys, run, out, eye)
        assert status == 2 and str(out) in printed and len(printed.strip().splitlines()) == 1
    out = tmp_path / "out"
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as now:
        now.setattr(os, "replace", full)
        status, printed = asks(capsys, run, out, eye)
    assert status == 2 and "No space left on device" in printed and str(out) in printed
    assert asks(capsys, run, out, eye)[0] == 0
    assert sorted(path.name for path in out.glob("*.png*")) == ["eye.png"]


def test_a_name_that_looks_like_somebodys_home_is_a_name(run, tmp_path, monkeypatch):
    photograph(tmp_path / "~nobody.png")
    monkeypatch.chdir(tmp_path)
    assert photographs.explain_files(["~nobody.png"], run, "~out") == (1, {})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert photographs.explain_files(["~/~nobody.png"], run, "~/out2") == (1, {})
    assert (tmp_path / "~out").is_dir() and (tmp_path / "out2").is_dir()
    for nothing in ([[""], run, "out3"], [["~nobody.png"], "", "out3"], [["~nobody.png"], run, ""]):
        with pytest.raises(ValueError, match="a name is empty"):
            photographs.explain_files(*nothing)


@pytest.mark.parametrize(
    "name", ["phantom", "data/sequencers/phantom", "./data/sequencers/phantom"]
)
def test_a_sequencer_is_found_by_its_name_and_by_its_path(run, tmp_path, monkeypatch, name):
    (tmp_path / "data" / "sequencers").mkdir(parents=True)
    run.rename(tmp_path / "data" / "sequencers" / "phantom")
    monkeypatch.setattr(paths, "SEQUENCERS", tmp_path / "data" / "sequencers")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    eye = photograph(tmp_path / "eye.png")
    for same in (name, "phantom", tmp_path / "data" / "sequencers" / "phantom"):
        assert photographs.explain_files([eye], same, tmp_path / "out") == (1, {})
    with pytest.raises(FileNotFoundError, match=r"no finished training in .*sequencers/nobody"):
        photographs.explain_files([eye], "nobody", tmp_path / "out")
