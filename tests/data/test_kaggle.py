"""lib.data.kaggle with Kaggle's real client against a server on localhost that answers as Kaggle does."""

import base64
import csv
import errno
import io
import json
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib import paths
from lib.data import archive
from lib.data import kaggle as download

NOISE = random.Random(0)
IMAGES = [f"{patient}_{eye}" for patient in (10, 13, 15) for eye in ("left", "right")]
TRAIN = {f"train/{image}.jpeg": NOISE.randbytes(NOISE.randrange(500, 900)) for image in IMAGES}
TEST = {f"test/{image}.jpeg": NOISE.randbytes(300) for image in IMAGES[:4]}
TRAIN_LABELS = "image,level\n" + "".join(f"{image},{i % 5}\n" for i, image in enumerate(IMAGES))
TEST_LABELS = "image,level,Usage\n" + "".join(
    f"{image},{i},Private\n" for i, image in enumerate(IMAGES[:4])
)
FORUM = "https://www.kaggle.com/competitions/tiny-retinas/discussion/1"
TINY = download.Collection(
    "tiny-retinas",
    {
        "train": download.Part(
            tuple(f"train.zip.00{i}" for i in (1, 2, 3)),
            "*.jpeg",
            6,
            "trainLabels.csv",
            "trainLabels.csv.zip",
        ),
        "test": download.Part(
            ("test.zip.001", "test.zip.002"), "*.jpeg", 4, "retinopathy_solution.csv", FORUM
        ),
    },
)


def zip_of(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def split(name, data, n):
    step = -(-len(data) // n)
    return {f"{name}.{i + 1:03}": data[i * step : (i + 1) * step] for i in range(n)}


FILES = {
    **split("train.zip", zip_of(TRAIN), 3),
    **split("test.zip", zip_of(TEST), 2),
    "trainLabels.csv.zip": zip_of({"trainLabels.csv": TRAIN_LABELS}, zipfile.ZIP_DEFLATED),
    "sample.zip": b"not asked for",
}
SECOND = FILES["train.zip.002"]


class Handler(BaseHTTPRequestHandler):
    """The competition service: a listing of two files a page, and downloads that redirect to a signed link."""

    def log_message(self, *_):
        pass

    def answer(self, status, data=b"", send=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data[:send])

    def refused(self, request):
        if request not in self.server.refuse:
            return False
        status, headers = self.server.refuse[request]
        message = json.dumps(
            {"code": status, "message": f"no, says the server with {status}"}
        ).encode()
        self.answer(status, message, Content_Type="application/json", **headers)
        return True

    def do_POST(self):
        server, call = self.server, self.path.rsplit("/", 1)[1]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.log.append((call, asked.get("fileName"), None))
        known = {"Bearer token", "Basic " + base64.b64encode(b"reader:secret").decode()}
        if call == "IntrospectToken":
            active = asked["token"] == "token"
            return self.json({"active": active, "username": "reader" if active else ""})
        if self.headers["Authorization"] not in known:
            return self.answer(
                401, b'{"code": 401, "message": "who?"}', Content_Type="application/json"
            )
        if self.refused(call):
            return None
        if asked["competitionName"] != server.competition:
            return self.answer(404)
        if call == "ListDataFiles":
            start = int(asked.get("pageToken") or 0)
            names = list(server.files)[start : start + 2]
            token = str(start + 2) if start + 2 < len(server.files) else ""
            sizes = {name: len(server.files[name]) for name in names} | server.listed
            files = [{"name": name, "totalBytes": sizes[name]} for name in names]
            return self.json({"files": files, "nextPageToken": token})
        name = asked["fileName"] if call == "DownloadDataFile" else "everything.zip"
        if name not in server.files | server.hidden:
            return self.answer(404)
        return self.answer(
            302, Location=f"http://127.0.0.1:{server.server_port}/signed/{name}?signature=0123"
        )

    def json(self, content):
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_GET(self):
        server, name = self.server, self.path.split("?")[0].rsplit("/", 1)[1]
        wanted = self.headers["Range"]
        server.log.append(("signed", name, wanted))
        if (
            wanted and "gzip" in self.headers["Accept-Encoding"]
        ):  # a range of compressed bytes would be other bytes
            return self.answer(406)
        if wanted and self.refused("signed"):
            return None
        data = (server.files | server.hidden)[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        send = server.cuts.get(name, []).pop(0) if wanted and server.cuts.get(name) else None
        if wanted and server.ranges:
            return self.answer(
                206, data[start:], send, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}"
            )
        return self.answer(200, data, send)


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The server, with Kaggle's client led there and an account's token in the environment."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.competition, server.files, server.hidden, server.listed = (
        "tiny-retinas",
        dict(FILES),
        {},
        {},
    )
    server.log, server.refuse, server.cuts, server.ranges = [], {}, {}, True
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    for name in (
        "KAGGLE_USERNAME",
        "KAGGLE_KEY",
        "KAGGLE_CONFIG_DIR",
        "KAGGLE_KERNEL_RUN_TYPE",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "HOME": str(home), "USERPROFILE": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_API_TOKEN": "token",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    from kagglesdk import kaggle_env

    for name in (
        kaggle_env._env_to_endpoint
    ):  # LOCALHOST is port 80; the others must not be reached whatever happens
        monkeypatch.setitem(
            kaggle_env._env_to_endpoint, name, f"http://127.0.0.1:{server.server_port}"
        )
    from kaggle.api.kaggle_api_extended import KaggleApi

    monkeypatch.setattr(
        KaggleApi, "args", ["--local"]
    )  # as the class reads it where it is imported first
    monkeypatch.setattr(KaggleApi, "config", str(home / ".kaggle" / "kaggle.json"))
    monkeypatch.setattr(download, "PAUSES", ())
    monkeypatch.setattr(download, "CHUNK", 100)
    server.log.clear()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw" / "tiny"


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def downloads(kaggle):
    return [(name, wanted) for call, name, wanted in kaggle.log if call == "signed" and wanted]


# From an account to the tree


def test_a_fetched_part_is_the_photographs_and_their_labels(kaggle, raw):
    assert download.fetch(TINY, raw, delete=True) == raw
    assert tree(raw) == TRAIN | {"trainLabels.csv": TRAIN_LABELS.encode()}
    pieces = ["train.zip.001", "train.zip.002", "train.zip.003", "trainLabels.csv.zip"]
    assert downloads(kaggle) == [(name, "bytes=0-") for name in pieces]


def test_archives_stay_unless_they_are_to_be_deleted(kaggle, raw):
    download.fetch(TINY, raw)
    kept = {name: data for name, data in tree(raw).items() if ".zip" in name}
    assert kept == {name: FILES[name] for name in kept} and len(kept) == 4
    before = len(kaggle.log)
    (raw / "train.zip.001").unlink()  # as if the power had failed while they were deleted
    download.fetch(TINY, raw, delete=True)
    assert len(kaggle.log) == before and tree(raw) == TRAIN | {
        "trainLabels.csv": TRAIN_LABELS.encode()
    }


def test_preflight_lists_the_files_with_their_sizes_and_transfers_none(kaggle, raw):
    wanted = ["train.zip.001", "train.zip.002", "train.zip.003", "trainLabels.csv.zip"]
    assert download.preflight(TINY, raw) == {name: len(FILES[name]) for name in wanted}
    assert not raw.exists() and not downloads(kaggle)
    assert ("DownloadDataFile", "trainLabels.csv.zip", None) in kaggle.log


def test_both_parts_with_the_labels_from_the_forum(kaggle, raw):
    write(raw, {"retinopathy_solution.csv": TEST_LABELS.encode()})
    download.fetch(TINY, raw, parts=("train", "test"), delete=True)
    found = tree(raw)
    assert (
        found.pop("testLabels.csv").decode()
        == "image,level\n10_left,0\n10_right,1\n13_left,2\n13_right,3\n"
    )
    labels = {
        "trainLabels.csv": TRAIN_LABELS.encode(),
        "retinopathy_solution.csv": TEST_LABELS.encode(),
    }
    assert found == TRAIN | TEST | labels


def test_the_test_part_without_its_labels_is_refused_before_anything_is_asked(kaggle, raw):
    with pytest.raises(
        FileNotFoundError, match=f"Download retinopathy_solution.csv, attached to {FORUM}"
    ) as caught:
        download.fetch(TINY, raw, parts=("train", "test"))
    assert str(raw) in str(caught.value) and not kaggle.log and not raw.exists()


def test_a_complete_part_asks_nothing_of_kaggle_and_needs_no_account(kaggle, raw, monkeypatch):
    download.fetch(TINY, raw, delete=True)
    kaggle.log.clear()
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert download.fetch(TINY, raw) == raw and download.preflight(TINY, raw) == {}
    assert kaggle.log == []


def test_a_lost_label_table_is_fetched_again_without_the_photographs(kaggle, raw):
    download.fetch(TINY, raw, delete=True)
    (raw / "trainLabels.csv").unlink()
    kaggle.log.clear()
    download.fetch(TINY, raw, delete=True)
    assert downloads(kaggle) == [("trainLabels.csv.zip", "bytes=0-")]
    assert tree(raw) == TRAIN | {"trainLabels.csv": TRAIN_LABELS.encode()}


def test_aptos_is_kaggles_zip_of_everything_brought_into_the_same_tree(kaggle, raw):
    images = {
        "000221358000": b"\x89PNG one",
        "1e5000000000": b"\x89PNG two",
        "005952885200": b"\x89PNG three",
    }
    members = {f"train_images/{name}.png": data for name, data in images.items()}
    members |= {
        "test_images/0005cfc8afb6.png": b"\x89PNG unlabelled",
        "test.csv": "id_code\n0005cfc8afb6\n",
    }
    members |= {
        "train.csv": "id_code,diagnosis\n"
        + "".join(f"{name},{i}\n" for i, name in enumerate(images))
    }
    kaggle.competition, kaggle.hidden = (
        download.APTOS,
        {"everything.zip": zip_of(members, zipfile.ZIP_DEFLATED)},
    )
    few = download.Collection(
        download.APTOS, {"train": replace(download.COLLECTIONS["aptos"].parts["train"], count=3)}
    )
    assert download.preflight(few, raw) == {
        f"{download.APTOS}.zip": len(kaggle.hidden["everything.zip"])
    }
    download.fetch(few, raw, delete=True)
    found = tree(raw)
    labels = found.pop("trainLabels.csv").decode()
    assert list(csv.reader(io.StringIO(labels))) == [
        ["image", "level"], ["000221358000", "0"], ["1e5000000000", "1"], ["005952885200", "2"],
    ]  # fmt: skip
    assert found.pop("train.csv").decode() == members["train.csv"]
    assert found == {f"train/{name}.png": data for name, data in images.items()}
    assert not [entry for entry in kaggle.log if entry[0] == "ListDataFiles"]


def test_the_table_has_the_published_pieces_and_counts():
    eyepacs, aptos = download.COLLECTIONS["eyepacs"], download.COLLECTIONS["aptos"]
    assert eyepacs.parts["train"].archive == tuple(f"train.zip.00{i}" for i in "12345")
    assert eyepacs.parts["test"].archive == tuple(f"test.zip.00{i}" for i in "1234567")
    assert {name: part.count for name, part in eyepacs.parts.items()} == {
        "train": 35126,
        "test": 53576,
    }
    assert (eyepacs.competition, aptos.competition) == (
        "diabetic-retinopathy-detection",
        "aptos2019-blindness-detection",
    )
    assert aptos.parts["train"].count == 3662


@pytest.mark.parametrize(
    ("collection", "parts", "message"),
    [
        ("eyepax", ("train",), "collection is 'eyepax': one of eyepacs, aptos"),
        ("aptos", ("test",), r"parts is \('test',\): a tuple of train"),
        ("eyepacs", "train", "parts is 'train': a tuple of train, test"),
    ],
)
def test_an_unknown_collection_or_part_is_named(raw, collection, parts, message):
    with pytest.raises(ValueError, match=message):
        download.fetch(collection, raw, parts)


# Transfers that break


def test_a_part_cut_off_is_continued_by_the_next_call(kaggle, raw):
    kaggle.cuts["train.zip.002"] = [700]
    with pytest.raises(ConnectionError, match="Run again; it continues"):
        download.fetch(TINY, raw)
    assert not (raw / "train.zip.002").exists() and not (raw / "train").exists()
    assert (raw / "train.zip.002.part").read_bytes() == SECOND[:700]
    kaggle.log.clear()
    download.fetch(TINY, raw)
    rest = [
        ("train.zip.002", "bytes=700-"),
        ("train.zip.003", "bytes=0-"),
        ("trainLabels.csv.zip", "bytes=0-"),
    ]
    assert downloads(kaggle) == rest
    assert (raw / "train.zip.002").read_bytes() == SECOND and not list(raw.glob("*.part"))
    assert {name: data for name, data in tree(raw).items() if name.startswith("train/")} == TRAIN


def test_a_dropped_connection_is_taken_up_again_while_it_brings_something(kaggle, raw, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    kaggle.cuts["train.zip.002"] = [300, 200, 0, 100]
    download.fetch(TINY, raw)
    asked = [wanted for name, wanted in downloads(kaggle) if name == "train.zip.002"]
    assert asked == ["bytes=0-", "bytes=300-", "bytes=500-", "bytes=500-", "bytes=600-"]
    assert (raw / "train.zip.002").read_bytes() == SECOND
    shutil.rmtree(raw)
    kaggle.cuts["train.zip.002"] = [300, 0, 0, 0]
    with pytest.raises(ConnectionError):
        download.fetch(TINY, raw)
    assert (raw / "train.zip.002.part").read_bytes() == SECOND[:300] and kaggle.cuts[
        "train.zip.002"
    ] == [0]


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_an_error_in_place_of_the_rest_leaves_what_was_fetched(kaggle, raw, status):
    write(raw, {"train.zip.001": FILES["train.zip.001"], "train.zip.002.part": SECOND[:700]})
    kaggle.refuse["signed"] = (status, {})
    with pytest.raises(OSError, match=f"Kaggle answers {status}"):
        download.fetch(TINY, raw)
    assert (raw / "train.zip.002.part").read_bytes() == SECOND[:700] and not (
        raw / "train.zip.002"
    ).exists()
    kaggle.refuse.clear()
    download.fetch(TINY, raw)
    assert ("train.zip.002", "bytes=700-") in downloads(kaggle) and (
        raw / "train.zip.002"
    ).read_bytes() == SECOND


def test_what_the_server_may_mend_is_tried_again_and_what_the_reader_must_is_not(
    kaggle, raw, monkeypatch
):
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    for status, attempts in ((503, 3), (403, 1), (429, 1)):
        kaggle.refuse["signed"] = (status, {})
        kaggle.log.clear()
        with pytest.raises(OSError, match=f"Kaggle answers {status}"):
            download.fetch(TINY, raw)
        assert len(downloads(kaggle)) == attempts


def test_a_server_without_ranges_begins_at_the_beginning(kaggle, raw):
    kaggle.ranges = False
    write(raw, {"train.zip.002.part": SECOND[:700]})
    download.fetch(TINY, raw)
    assert (raw / "train.zip.002").read_bytes() == SECOND


def test_a_whole_file_is_kept_and_one_cut_off_under_its_final_name_continued(kaggle, raw):
    first, _, third = (FILES[name] for name in TINY.parts["train"].archive)
    write(raw, {"train.zip.001": first, "train.zip.002": SECOND[:50], "train.zip.003.part": third})
    untouched = (raw / "train.zip.001").stat().st_ctime_ns
    download.fetch(TINY, raw)
    assert (raw / "train.zip.001").stat().st_ctime_ns == untouched
    assert downloads(kaggle) == [
        ("train.zip.002", "bytes=50-"),
        ("trainLabels.csv.zip", "bytes=0-"),
    ]
    assert all((raw / name).read_bytes() == FILES[name] for name in TINY.parts["train"].archive)


def test_a_file_of_another_size_than_listed_is_not_taken(kaggle, raw):
    kaggle.listed["train.zip.002"] = len(SECOND) + 1
    message = rf"lists train.zip.002 with {len(SECOND) + 1:,} bytes and sends {len(SECOND):,}"
    with pytest.raises(ValueError, match=message):
        download.fetch(TINY, raw)
    assert not list(raw.glob("train.zip.002*"))
    kaggle.listed.clear()
    write(raw, {"train.zip.002": SECOND + b"more"})
    with pytest.raises(
        ValueError, match=f"has {len(SECOND) + 4:,} bytes, train.zip.002 on Kaggle {len(SECOND):,}"
    ):
        download.fetch(TINY, raw)
    assert (raw / "train.zip.002.part").read_bytes() == SECOND + b"more"


# What Kaggle refuses

RULES = r"kaggle\.com/competitions/tiny-retinas/rules.*verify your phone"


@pytest.mark.parametrize("call", ["ListDataFiles", "DownloadDataFile"])
@pytest.mark.parametrize(
    ("status", "headers", "kind", "message"),
    [
        (401, {}, PermissionError, r"401.*settings/api.*KAGGLE_API_TOKEN.*kaggle\.json"),
        (403, {}, PermissionError, f"403.*no, says the server with 403.*{RULES}"),
        (404, {}, FileNotFoundError, r"404.*tiny-retinas/data"),
        (429, {}, ConnectionError, "429.*Wait an hour and run again; it continues"),
        (429, {"Retry-After": "77"}, ConnectionError, "429.*Wait 77 s and run again"),
        (503, {}, ConnectionError, "503.*run again"),
    ],
)
def test_a_refusal_becomes_an_instruction_before_anything_is_fetched(
    kaggle, raw, call, status, headers, kind, message
):
    kaggle.refuse[call] = (status, headers)
    with pytest.raises(kind, match=message):
        download.fetch(TINY, raw)
    assert not downloads(kaggle) and not raw.exists()


def test_files_that_are_not_in_the_listing_are_named(kaggle, raw):
    del kaggle.files["train.zip.003"]
    with pytest.raises(
        FileNotFoundError, match=r"has no \['train.zip.003'\], but \['sample.zip', 'test.zip.001'"
    ):
        download.preflight(TINY, raw)


def test_no_connection_is_an_instruction(kaggle, raw):
    kaggle.shutdown()
    kaggle.server_close()
    with pytest.raises(
        ConnectionError, match=r"the connection to Kaggle failed .*Run again; it continues"
    ):
        download.preflight(TINY, raw)


@pytest.mark.parametrize("form", ["token", "token file", "variables", "kaggle.json"])
def test_credentials_are_taken_in_every_form_the_client_knows(kaggle, raw, monkeypatch, form):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    home = Path.home() / ".kaggle"
    if form == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    elif form == "token file":
        (home / "access_token").write_text("token\n")
    elif form == "variables":
        monkeypatch.setenv("KAGGLE_USERNAME", "reader")
        monkeypatch.setenv("KAGGLE_KEY", "secret")
    else:
        (home / "kaggle.json").write_text(json.dumps({"username": "reader", "key": "secret"}))
    assert len(download.preflight(TINY, raw)) == 4


@pytest.mark.parametrize("token", [None, "expired"])
def test_without_valid_credentials_the_error_says_how_to_get_them(
    kaggle, raw, monkeypatch, capsys, token
):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    with pytest.raises(
        PermissionError, match=r"no valid Kaggle credentials.*settings/api.*~/\.kaggle/access_token"
    ):
        download.preflight(TINY, raw)
    assert capsys.readouterr().out == "" and not [
        call for call, *_ in kaggle.log if call != "IntrospectToken"
    ]


def test_a_wrong_key_is_refused_by_kaggle_and_explained(kaggle, raw, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_USERNAME", "reader")
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    with pytest.raises(PermissionError, match="does not accept the credentials"):
        download.preflight(TINY, raw)


def python(code, tmp_path, monkeypatch):
    for name in (
        "KAGGLE_API_TOKEN",
        "KAGGLE_USERNAME",
        "KAGGLE_KEY",
        "KAGGLE_CONFIG_DIR",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    return subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True
    )


def test_a_first_import_without_an_account_neither_prints_nor_exits(tmp_path, monkeypatch):
    code = "from lib import download\ntry: download.preflight('eyepacs', 'nowhere')\nexcept PermissionError: print('!')"
    done = python(code, tmp_path, monkeypatch)
    assert (done.stdout, done.stderr, done.returncode) == ("!\n", "", 0)


def test_importing_the_module_imports_no_kaggle(tmp_path, monkeypatch):
    code = "import sys, lib.data.kaggle; print([name for name in sys.modules if name.startswith('kaggle')])"
    assert python(code, tmp_path, monkeypatch).stdout == "[]\n"
    assert not list(tmp_path.iterdir())


# Disk


def enough(raw, monkeypatch, free, **arguments):
    """Whether preflight agrees to `free` bytes and to no byte less."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(OSError, match="GB are free"):
        download.preflight(TINY, raw, **arguments)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    return bool(download.preflight(TINY, raw, **arguments))


def test_the_disk_must_hold_archives_photographs_and_the_prepared_set(kaggle, raw, monkeypatch):
    names = ["train.zip.001", "train.zip.002", "train.zip.003", "trainLabels.csv.zip"]
    total = sum(len(FILES[name]) for name in names)
    assert enough(raw, monkeypatch, 2 * total, prepared_bytes=0)
    assert enough(raw, monkeypatch, 2 * total + 6000, prepared_bytes=1000)
    write(raw, {"train.zip.001": FILES["train.zip.001"], "train.zip.002.part": b"x" * 500})
    write(raw / "train", {"10_left.jpeg": b"x" * 600})
    assert enough(
        raw, monkeypatch, 2 * total - len(FILES["train.zip.001"]) - 500 - 600, prepared_bytes=0
    )
    write(raw, {"trainLabels.csv": b"image,level", "testLabels.csv": b"image,level"})
    write(raw / "train", {f"{image}.jpeg": b"x" * 5000 for image in IMAGES})
    test = sum(len(FILES[name]) for name in ("test.zip.001", "test.zip.002"))
    assert enough(raw, monkeypatch, 2 * test + 10, prepared_bytes=1, parts=("train", "test"))


def test_too_small_a_disk_is_refused_before_anything_is_fetched(kaggle, raw, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2.5e9))
    with pytest.raises(
        OSError, match=r"needs 6\.0 GB more .*2\.5 GB are free.*COMPANION_DATA"
    ) as caught:
        download.fetch(TINY, raw, prepared_bytes=10**9)
    assert caught.value.errno == errno.ENOSPC and not downloads(kaggle) and not raw.exists()


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full on this system to write to"
)
@pytest.mark.parametrize("full", ["train.zip.002.part", "train/13_left.jpeg.part"])
def test_a_disk_that_fills_up_is_an_instruction_and_the_next_call_continues(kaggle, raw, full):
    (raw / full).parent.mkdir(parents=True)
    (raw / full).symlink_to("/dev/full")
    with pytest.raises(OSError, match="Make room and run again; it continues") as caught:
        download.fetch(TINY, raw)
    assert caught.value.errno == errno.ENOSPC and not (raw / full.removesuffix(".part")).exists()
    (raw / full).unlink()
    kaggle.log.clear()
    download.fetch(TINY, raw, delete=True)
    assert tree(raw) == TRAIN | {"trainLabels.csv": TRAIN_LABELS.encode()}
    assert ("train.zip.001", "bytes=0-") not in downloads(kaggle)


# Archives


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_comes_out_whole_however_it_was_cut(tmp_path, n, compression):
    data = zip_of(TRAIN | {"empty": b""}, compression)
    assert (
        download.unpack(write(tmp_path / "in", split("train.zip", data, n)), tmp_path / "out") == 7
    )
    assert tree(tmp_path / "out") == TRAIN | {"empty": b""}
    assert tree(tmp_path / "in") == split("train.zip", data, n)


def test_a_chain_of_files_reads_as_their_bytes_joined(tmp_path):
    data = NOISE.randbytes(1000)
    cuts = [0, 1, 1, 300, 301, 700, 1000]
    pieces = {f"{i}": data[a:b] for i, (a, b) in enumerate(pairwise(cuts))}
    oracle = io.BytesIO(data)
    with (
        archive.Chain(write(tmp_path, pieces)) as raw_chain,
        io.BufferedReader(raw_chain, 64) as chain,
    ):
        for _ in range(2000):
            whence = NOISE.randrange(3)
            at = oracle.tell()
            low = -(0, at, 1000)[whence]
            offset = NOISE.randrange(low, low + 1100)
            assert chain.seek(offset, whence) == oracle.seek(offset, whence)
            count = NOISE.choice([0, 1, 5, 100, 2000])
            assert chain.read(count) == oracle.read(count) and chain.tell() == oracle.tell()
        with pytest.raises(OSError):
            chain.seek(-1)


def test_an_unpacking_broken_off_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    archive, out, real = (
        write(tmp_path / "in", split("train.zip", zip_of(TRAIN), 3)),
        tmp_path / "out",
        paths.write,
    )

    def broken(path, write):
        if path.name == "13_right.jpeg":
            path.with_name(f"{path.name}.part").write_bytes(b"half a photogra")
            raise KeyboardInterrupt
        real(path, write)

    monkeypatch.setattr(paths, "write", broken)
    with pytest.raises(KeyboardInterrupt):
        download.unpack(archive, out, delete=True)
    monkeypatch.setattr(paths, "write", real)
    first = {path: path.stat().st_ino for path in out.rglob("*.jpeg")}
    assert (
        len(first) == 3
        and len(list(out.rglob("*.part"))) == 1
        and all(path.exists() for path in archive)
    )
    (out / "train" / "10_left.jpeg").write_bytes(b"short")
    assert download.unpack(archive, out, delete=True) == 6
    assert tree(out) == TRAIN and not any(path.exists() for path in archive)
    kept = [path for path in first if path.name != "10_left.jpeg"]
    assert {path: path.stat().st_ino for path in kept} == {path: first[path] for path in kept}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside.jpeg", "train/../../outside.jpeg", "..\\outside.jpeg", "C:\\outside.jpeg", "C:x.jpeg",
     "\\\\host\\share\\x.jpeg"],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_written(tmp_path, name):
    archive = write(tmp_path / "in", {"train.zip": zip_of(TRAIN | {name: b"evil"})})
    with pytest.raises(ValueError, match=re.escape(f"{name!r} leads elsewhere")):
        download.unpack(archive, tmp_path / "out", delete=True)
    assert list(tree(tmp_path)) == ["in/train.zip"]


def test_a_link_is_refused_before_anything_is_written(tmp_path):
    link = zipfile.ZipInfo("train/16_left.jpeg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = write(tmp_path / "in", {"train.zip": zip_of(TRAIN | {"x": b""})})
    with zipfile.ZipFile(archive[0], "a") as zipped:
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"'train/16_left\.jpeg' leads elsewhere or is a link"):
        download.unpack(archive, tmp_path / "out")
    assert list(tree(tmp_path)) == ["in/train.zip"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_named_with_the_piece_and_comes_out_after_that_is_fetched_again(
    tmp_path, compression
):
    good = split(
        "train.zip", zip_of({name: data * 20 for name, data in TRAIN.items()}, compression), 3
    )
    second = bytearray(good["train.zip.002"])
    second[len(second) // 2] ^= 0xFF
    archive = write(tmp_path / "in", good | {"train.zip.002": bytes(second)})
    with pytest.raises(
        ValueError, match=r"train/1\d_\w+\.jpeg is damaged in \S*train\.zip\.002 "
    ) as caught:
        download.unpack(archive, tmp_path / "out", delete=True)
    member = str(caught.value).split()[0]
    assert not (tmp_path / "out" / member).exists() and all(path.exists() for path in archive)
    write(tmp_path / "in", good)
    download.unpack(archive, tmp_path / "out", delete=True)
    assert tree(tmp_path / "out") == {name: data * 20 for name, data in TRAIN.items()}


def test_whatever_byte_is_damaged_nothing_wrong_comes_out(tmp_path):
    members = {f"train/{image}.jpeg": NOISE.randbytes(30) + bytes(30) for image in IMAGES[:1]}
    good, counts = zip_of(members, zipfile.ZIP_DEFLATED), {"refused": 0, "whole": 0}
    for at in range(len(good)):
        for value in {good[at] ^ 0xFF, 0} - {good[at]}:
            archive = write(
                tmp_path / "in", {"train.zip": good[:at] + bytes([value]) + good[at + 1 :]}
            )
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            try:
                download.unpack(archive, tmp_path / "out")
                counts["whole"] += 1
            except ValueError:
                counts["refused"] += 1
            found = {
                name: data
                for name, data in tree(tmp_path / "out").items()
                if not name.endswith(".part")
            }
            assert set(found.values()) <= set(members.values())
    assert counts["refused"] > counts["whole"] > 0  # dates and attributes may change


def test_a_missing_or_misplaced_piece_is_an_error_and_nothing_is_deleted(tmp_path):
    one, two, three = archive = write(tmp_path, split("train.zip", zip_of(TRAIN), 3))
    for wrong in ([one, two], [two, three], [three, two, one], [one]):
        with pytest.raises(ValueError, match=r"train\.zip\.00.*: no whole zip, in this order"):
            download.unpack(wrong, tmp_path / "out", delete=True)
    three.rename(tmp_path / "train.zip.003.part")
    with pytest.raises(FileNotFoundError, match=r"train\.zip\.003"):
        download.unpack(archive, tmp_path / "out", delete=True)
    assert one.exists() and two.exists() and not list((tmp_path / "out").rglob("*.jpeg"))


# Counts


def test_photographs_that_are_missing_are_counted_and_named(kaggle, raw):
    fewer = {name: data for name, data in TRAIN.items() if "13" not in name}
    kaggle.files |= split("train.zip", zip_of(fewer), 3)
    message = r"holds 4 of 6 photographs, 2 missing; labels without a photograph: \['13_left', '13_right'\]"
    with pytest.raises(ValueError, match=message):
        download.fetch(TINY, raw, delete=True)
    assert len(list(raw.glob("train.zip.00?"))) == 3


def test_fewer_photographs_than_the_competition_has_are_an_error_though_each_has_its_label(
    kaggle, raw
):
    fewer = dict(list(TRAIN.items())[:5])
    kaggle.files |= split("train.zip", zip_of(fewer), 3)
    kaggle.files["trainLabels.csv.zip"] = zip_of(
        {"trainLabels.csv": TRAIN_LABELS.replace("15_right,0\n", "")}
    )
    with pytest.raises(
        ValueError, match="holds 5 of 6 photographs, 1 missing; labels without a photograph"
    ):
        download.fetch(TINY, raw)


def test_photographs_without_a_label_are_named(kaggle, raw):
    kaggle.files["trainLabels.csv.zip"] = zip_of(
        {"trainLabels.csv": TRAIN_LABELS.replace("15_left,4\n", "")}
    )
    with pytest.raises(
        ValueError, match=r"holds 6 of 6 photographs, 0 missing.*without a label: \['15_left'\]"
    ):
        download.fetch(TINY, raw)


def test_a_label_table_with_other_columns_is_refused(kaggle, raw):
    write(raw, {"retinopathy_solution.csv": b"<html>,sign in\n,\n"})
    with pytest.raises(ValueError, match="the columns <html>, sign in: image, level needed"):
        download.fetch(TINY, raw, parts=("test",))
    assert not (raw / "testLabels.csv").exists()
