"""Kaggle's real client against a server on localhost that answers as Kaggle does."""

import base64
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
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.ultratb import FormattedTB

from lib import paths
from lib.data import kaggle as download  # `kaggle` is the server, as a test's argument

NOISE = random.Random(0)
SECRET = f"{NOISE.getrandbits(128):x}"  # what signs a link
IMAGES = [f"{patient}_{eye}" for patient in (10, 13, 15) for eye in ("left", "right")]
TRAIN = {f"train/{image}.jpeg": NOISE.randbytes(NOISE.randrange(500, 900)) for image in IMAGES}
TEST = {f"test/{image}.jpeg": NOISE.randbytes(300) for image in IMAGES[:4]}
TRAIN_LABELS = "image,level\n" + "".join(f"{image},{i % 5}\n" for i, image in enumerate(IMAGES))
TEST_LABELS = "image,level,Usage\n" + "".join(
    f"{image},{i},Private\n" for i, image in enumerate(IMAGES[:4])
)
FORUM = "https://www.kaggle.com/competitions/tiny-retinas/discussion/1"
TINY = download.Competition(
    "tiny-retinas",
    {
        "train": download.CompetitionSplit(
            archive=("train.zip.001", "train.zip.002", "train.zip.003"),
            photographs="*.jpeg",
            count=6,
            labels="trainLabels.csv",
            labels_zip="trainLabels.csv.zip",
        ),
        "test": download.CompetitionSplit(
            archive=("test.zip.001", "test.zip.002"),
            photographs="*.jpeg",
            count=4,
            labels="retinopathy_solution.csv",
            labels_page=FORUM,
        ),
    },
)


def zip_of(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def cut(name, data, n):
    step = -(-len(data) // n)
    return {f"{name}.{i + 1:03}": data[i * step : (i + 1) * step] for i in range(n)}


FILES = {
    **cut("train.zip", zip_of(TRAIN), 3),
    **cut("test.zip", zip_of(TEST), 2),
    "trainLabels.csv.zip": zip_of({"trainLabels.csv": TRAIN_LABELS}, zipfile.ZIP_DEFLATED),
    "sample.zip": b"not asked for",
}
SECOND = FILES["train.zip.002"]
PIECES = ["train.zip.001", "train.zip.002", "train.zip.003", "trainLabels.csv.zip"]
WHOLE = TRAIN | {"trainLabels.csv": TRAIN_LABELS.encode()}


class Handler(BaseHTTPRequestHandler):
    """The competition service: two files to a page of the listing, downloads by a signed link."""

    def log_message(self, *_):
        pass

    def answer(self, status, data=b"", send=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data[:send])

    def refused(self, request, kind="application/json"):
        if request not in self.server.refuse:
            return False
        status, headers = self.server.refuse[request]
        message = json.dumps(
            {"code": status, "message": f"no, says the server with {status}"}
        ).encode()
        self.answer(status, message, Content_Type=kind, **headers)
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
            302, Location=f"http://127.0.0.1:{server.link_port}/signed/{name}?signature={SECRET}"
        )

    def json(self, content):
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_GET(self):
        server, name = self.server, self.path.split("?")[0].rsplit("/", 1)[1]
        wanted = self.headers["Range"]
        server.log.append(("signed", name, wanted))
        if wanted and "gzip" in self.headers["Accept-Encoding"]:
            return self.answer(406)  # a range of compressed bytes would be other bytes
        if self.refused("signed" if wanted else "link", "application/xml"):
            return None
        data = (server.files | server.hidden)[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        send = server.cuts.get(name, []).pop(0) if wanted and server.cuts.get(name) else None
        if wanted and server.ranges:
            return self.answer(
                206, data[start:], send, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}"
            )
        return self.answer(200, data, send)


def forget_account(monkeypatch, home):
    """Neither variables nor a home folder with an account, and localhost in place of Kaggle."""
    names = "API_TOKEN USERNAME KEY CONFIG_DIR KERNEL_RUN_TYPE"
    for name in [*(f"KAGGLE_{name}" for name in names.split()), "XDG_CONFIG_HOME"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The server, with Kaggle's client led there and an account's token in the environment."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.competition, server.ranges = "tiny-retinas", True
    server.files, server.hidden, server.listed = dict(FILES), {}, {}
    server.link_port = server.server_port
    server.log, server.refuse, server.cuts = [], {}, {}
    arguments = {"poll_interval": 0.01}
    threading.Thread(target=server.serve_forever, kwargs=arguments, daemon=True).start()
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    forget_account(monkeypatch, home)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    from kagglesdk import kaggle_env

    endpoints = kaggle_env._env_to_endpoint
    for name in endpoints:  # LOCALHOST is port 80; the others must not be reached at all
        monkeypatch.setitem(endpoints, name, f"http://127.0.0.1:{server.server_port}")
    from kaggle.api.kaggle_api_extended import KaggleApi

    monkeypatch.setattr(KaggleApi, "args", ["--local"])  # what the class reads on its import
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
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_archives(folder):
    """The tree, without zips and their pieces."""
    return {name: data for name, data in tree(folder).items() if ".zip" not in name}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def downloads(kaggle):
    return [(name, wanted) for call, name, wanted in kaggle.log if call == "signed" and wanted]


# From an account to the tree


def test_a_fetched_split_is_the_photographs_and_their_labels(kaggle, raw):
    assert download.fetch(TINY, raw) == raw
    assert tree(raw) == WHOLE | {name: FILES[name] for name in PIECES}
    assert downloads(kaggle) == [(name, "bytes=0-") for name in PIECES]


def test_a_complete_split_asks_nothing_of_kaggle_and_needs_no_account(kaggle, raw, monkeypatch):
    """With its archives, with some of them and with none."""
    download.fetch(TINY, raw)
    kaggle.log.clear()
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    for gone in ([], PIECES[:1], PIECES[1:]):
        for name in gone:
            (raw / name).unlink()
        assert download.fetch(TINY, raw) == raw and download.preflight(TINY, raw) == {}
    assert kaggle.log == [] and tree(raw) == WHOLE


def test_preflight_lists_the_files_with_their_sizes_and_transfers_none(kaggle, raw):
    assert download.preflight(TINY, raw) == {name: len(FILES[name]) for name in PIECES}
    assert not raw.exists() and not downloads(kaggle)
    assert ("DownloadDataFile", "trainLabels.csv.zip", None) in kaggle.log


def test_both_splits_with_the_labels_from_the_forum(kaggle, raw):
    write(raw, {"retinopathy_solution.csv": TEST_LABELS.encode()})
    download.fetch(TINY, raw, splits=("train", "test"))
    found = without_archives(raw)
    labels = found.pop("testLabels.csv").decode()
    assert labels == "image,level\n10_left,0\n10_right,1\n13_left,2\n13_right,3\n"
    assert found == WHOLE | TEST | {"retinopathy_solution.csv": TEST_LABELS.encode()}


def test_the_test_split_without_its_labels_is_refused_before_anything_is_asked(kaggle, raw):
    message = f"Download retinopathy_solution.csv, attached to {FORUM}, and put it into {raw}"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        download.fetch(TINY, raw, splits=("train", "test"))
    assert not kaggle.log and not raw.exists()


def test_a_lost_label_table_is_fetched_again_without_the_photographs(kaggle, raw):
    download.fetch(TINY, raw)
    for name in [*PIECES, "trainLabels.csv"]:
        (raw / name).unlink()
    kaggle.log.clear()
    download.fetch(TINY, raw)
    assert downloads(kaggle) == [("trainLabels.csv.zip", "bytes=0-")]
    assert without_archives(raw) == WHOLE


def test_aptos_is_kaggles_zip_of_everything_brought_into_the_same_tree(kaggle, raw):
    names = ("000221358000", "1e5000000000", "NA")
    images = {name: b"\x89PNG " + name.encode() for name in names}
    members = {f"train_images/{name}.png": data for name, data in images.items()}
    members |= {"test_images/0005cfc8afb6.png": b"\x89PNG unlabelled", "test.csv": "id_code\n"}
    rows = "".join(f"{name},{level}\n" for level, name in enumerate(names))
    members |= {"train.csv": f"id_code,diagnosis\n{rows}"}
    aptos = download.COLLECTIONS["aptos"]
    everything = zip_of(members, zipfile.ZIP_DEFLATED)
    kaggle.competition, kaggle.hidden = aptos.name, {"everything.zip": everything}
    few = replace(aptos, splits={"train": replace(aptos.splits["train"], count=3)})
    assert download.preflight(few, raw) == {f"{aptos.name}.zip": len(everything)}
    download.fetch(few, raw)
    found = without_archives(raw)
    assert found.pop("trainLabels.csv").decode() == f"image,level\n{rows}"
    assert found.pop("train.csv").decode() == members["train.csv"]
    assert found == {f"train/{name}.png": data for name, data in images.items()}
    assert not [entry for entry in kaggle.log if entry[0] == "ListDataFiles"]


def test_the_collections_have_the_published_pieces_and_counts():
    eyepacs, aptos = download.COLLECTIONS["eyepacs"], download.COLLECTIONS["aptos"]
    assert eyepacs.name == "diabetic-retinopathy-detection"
    assert aptos.name == "aptos2019-blindness-detection"
    train, test = eyepacs.splits["train"], eyepacs.splits["test"]
    assert train.archive == tuple(f"train.zip.00{i}" for i in "12345") and train.count == 35126
    assert test.archive == tuple(f"test.zip.00{i}" for i in "1234567") and test.count == 53576
    assert aptos.splits["train"].count == 3662


@pytest.mark.parametrize(
    ("collection", "splits", "message"),
    [
        ("eyepax", ("train",), "collection is 'eyepax': one of eyepacs, aptos"),
        ("aptos", ("test",), r"splits is \('test',\): a tuple of train"),
        ("eyepacs", "train", "splits is 'train': a tuple of train, test"),
    ],
)
def test_an_unknown_collection_or_split_is_named(raw, collection, splits, message):
    with pytest.raises(ValueError, match=message):
        download.fetch(collection, raw, splits)


# Transfers that break


def test_a_file_cut_off_is_continued_by_the_next_call(kaggle, raw):
    kaggle.cuts["train.zip.002"] = [700]
    with pytest.raises(ConnectionError, match="Run again; it continues"):
        download.fetch(TINY, raw)
    assert tree(raw) == {
        "train.zip.001": FILES["train.zip.001"],
        "train.zip.002.part": SECOND[:700],
    }
    kaggle.log.clear()
    download.fetch(TINY, raw)
    starts = dict(zip(PIECES[1:], ["bytes=700-", "bytes=0-", "bytes=0-"], strict=True))
    assert downloads(kaggle) == list(starts.items())
    assert tree(raw) == WHOLE | {name: FILES[name] for name in PIECES}


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
    assert (raw / "train.zip.002.part").read_bytes() == SECOND[:300]
    assert kaggle.cuts["train.zip.002"] == [0]


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (404, 1), (429, 1), (500, 3), (503, 3)])
def test_an_error_in_place_of_the_rest_leaves_what_was_fetched(
    kaggle, raw, monkeypatch, status, attempts
):
    """What the server may mend is tried again, what the reader must is not."""
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    write(raw, {"train.zip.001": FILES["train.zip.001"], "train.zip.002.part": SECOND[:700]})
    kaggle.refuse["signed"] = (status, {})
    with pytest.raises(OSError, match=f"Kaggle answers {status}"):
        download.fetch(TINY, raw)
    assert downloads(kaggle) == [("train.zip.002", "bytes=700-")] * attempts
    assert (raw / "train.zip.002.part").read_bytes() == SECOND[:700]
    assert not (raw / "train.zip.002").exists()
    kaggle.refuse.clear()
    download.fetch(TINY, raw)
    assert downloads(kaggle)[attempts] == ("train.zip.002", "bytes=700-")
    assert (raw / "train.zip.002").read_bytes() == SECOND


def test_a_server_without_ranges_begins_at_the_beginning(kaggle, raw):
    kaggle.ranges = False
    write(raw, {"train.zip.002.part": SECOND[:700]})
    download.fetch(TINY, raw)
    assert (raw / "train.zip.002").read_bytes() == SECOND


def test_a_whole_file_is_kept_and_one_cut_off_under_its_final_name_continued(kaggle, raw):
    first, _, third = (FILES[name] for name in PIECES[:3])
    write(raw, {"train.zip.001": first, "train.zip.002": SECOND[:50], "train.zip.003.part": third})
    untouched = (raw / "train.zip.001").stat().st_ctime_ns
    download.fetch(TINY, raw)
    assert (raw / "train.zip.001").stat().st_ctime_ns == untouched
    rest = [("train.zip.002", "bytes=50-"), ("trainLabels.csv.zip", "bytes=0-")]
    assert downloads(kaggle) == rest
    assert all((raw / name).read_bytes() == FILES[name] for name in PIECES)


def test_a_file_of_another_size_than_listed_is_not_taken(kaggle, raw):
    n = len(SECOND)
    kaggle.listed["train.zip.002"] = n + 1
    message = rf"lists train.zip.002 with {n + 1:,} bytes and sends {n:,}; nothing is written"
    with pytest.raises(ValueError, match=message):
        download.fetch(TINY, raw)
    assert not list(raw.glob("train.zip.002*"))
    kaggle.listed.clear()
    write(raw, {"train.zip.002": SECOND + b"more"})
    message = f"has {n + 4:,} bytes, train.zip.002 on Kaggle {n:,}: delete it and run again"
    with pytest.raises(ValueError, match=message):
        download.fetch(TINY, raw)
    assert (raw / "train.zip.002.part").read_bytes() == SECOND + b"more"


def shown(caught):
    """All that a notebook or a terminal shows of an error."""
    error = caught.type, caught.value, caught.tb
    texts = ["".join(traceback.format_exception(*error))]
    for mode in ("Context", "Verbose"):
        texts.append(FormattedTB(mode=mode).text(*error))
    return "\n".join(texts)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("request_", ["signed", "link"])
def test_no_error_shows_a_signed_link(kaggle, raw, request_, status):
    kaggle.refuse[request_] = status, {}
    with pytest.raises(OSError, match=rf"Kaggle answers {status} .*, from 127\.0\.0\.1") as caught:
        download.fetch(TINY, raw)
    assert "127.0.0.1" in shown(caught)
    assert SECRET not in shown(caught)


@pytest.mark.parametrize("broken", ["host", "transfer"])
def test_a_connection_that_breaks_shows_no_signed_link(kaggle, raw, broken):
    if broken == "host":
        kaggle.link_port = 1
    kaggle.cuts["train.zip.001"] = [100]
    message = r"connection to Kaggle failed \(\w+, to .*\)\. Run again"
    with pytest.raises(ConnectionError, match=message) as caught:
        download.fetch(TINY, raw)
    assert SECRET not in shown(caught)


def test_an_interrupt_between_two_attempts_shows_no_signed_link(kaggle, raw, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "PAUSES", (1,))
    monkeypatch.setattr(download.time, "sleep", interrupt)
    kaggle.refuse["signed"] = 503, {}
    with pytest.raises(KeyboardInterrupt) as caught:
        download.fetch(TINY, raw)
    assert SECRET not in shown(caught)


def test_two_downloads_to_one_folder_do_not_mix(kaggle, raw):
    with paths.alone(raw, "downloading to"), ThreadPoolExecutor(1) as other:
        with pytest.raises(RuntimeError, match=rf"is downloading to .*{raw.name}"):
            other.submit(download.fetch, TINY, raw).result()
    assert download.fetch(TINY, raw) == raw


# What Kaggle refuses

RULES = r"kaggle\.com/competitions/tiny-retinas/rules.*verify your phone"


@pytest.mark.parametrize(
    ("call", "status", "headers", "kind", "message"),
    [
        ("List", 401, {}, PermissionError, r"401.*settings/api.*KAGGLE_API_TOKEN.*kaggle\.json"),
        ("List", 403, {}, PermissionError, f"403.*no, says the server with 403.*{RULES}"),
        ("Download", 403, {}, PermissionError, f"403.*no, says the server with 403.*{RULES}"),
        ("List", 404, {}, FileNotFoundError, r"404.*tiny-retinas/data"),
        ("Download", 404, {}, FileNotFoundError, r"404.*tiny-retinas/data"),
        ("List", 429, {}, ConnectionError, "429.*Wait an hour and run again; it continues"),
        ("Download", 429, {"Retry-After": "77"}, ConnectionError, "429.*Wait 77 s and run again"),
        ("List", 503, {}, ConnectionError, "503.*run again"),
    ],
)
def test_a_refusal_becomes_an_instruction_before_anything_is_fetched(
    kaggle, raw, call, status, headers, kind, message
):
    kaggle.refuse[{"List": "ListDataFiles", "Download": "DownloadDataFile"}[call]] = status, headers
    with pytest.raises(kind, match=message):
        download.fetch(TINY, raw)
    assert not downloads(kaggle) and not raw.exists()


def test_files_that_are_not_in_the_listing_are_named(kaggle, raw):
    del kaggle.files["train.zip.003"]
    message = r"has no \['train.zip.003'\], but \['sample.zip', 'test.zip.001'"
    with pytest.raises(FileNotFoundError, match=message):
        download.preflight(TINY, raw)


def test_no_connection_is_an_instruction(kaggle, raw):
    kaggle.shutdown()
    kaggle.server_close()
    message = r"the connection to Kaggle failed .*Run again; it continues"
    with pytest.raises(ConnectionError, match=message):
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
    message = r"no valid Kaggle credentials.*settings/api.*~/\.kaggle/access_token"
    with pytest.raises(PermissionError, match=message):
        download.preflight(TINY, raw)
    assert capsys.readouterr().out == ""
    assert {call for call, *_ in kaggle.log} <= {"IntrospectToken"}


def test_a_wrong_key_is_refused_by_kaggle_and_explained(kaggle, raw, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_USERNAME", "reader")
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    with pytest.raises(PermissionError, match="does not accept the credentials"):
        download.preflight(TINY, raw)


FIRST_IMPORT = """
import sys
from pathlib import Path
from lib.data import kaggle
assert not [name for name in sys.modules if name.startswith("kaggle")]
assert not list(Path.home().iterdir())
try:
    kaggle.preflight("eyepacs", Path("nowhere"))
except PermissionError:
    print("!")
"""


def test_a_first_import_asks_for_no_account_and_the_clients_neither_prints_nor_exits(
    tmp_path, monkeypatch
):
    forget_account(monkeypatch, tmp_path)
    command = [sys.executable, "-c", FIRST_IMPORT]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("!\n", "", 0)


# Disk


def enough(raw, monkeypatch, free, splits=("train",), prepared=0):
    """Whether preflight agrees to `free` bytes and to no byte less."""
    monkeypatch.setattr(download, "PREPARED_BYTES", prepared)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(OSError, match="GB are free"):
        download.preflight(TINY, raw, splits)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    return bool(download.preflight(TINY, raw, splits))


def test_the_disk_must_hold_archives_photographs_and_the_prepared_set(kaggle, raw, monkeypatch):
    need = 2 * sum(len(FILES[name]) for name in PIECES)
    assert enough(raw, monkeypatch, need)
    assert enough(raw, monkeypatch, need + 6000, prepared=1000)
    write(raw, {"train.zip.001": FILES["train.zip.001"], "train.zip.002.part": b"x" * 500})
    write(raw / "train", {"10_left.jpeg": b"x" * 600})
    assert enough(raw, monkeypatch, need - len(FILES["train.zip.001"]) - 500 - 600)
    write(raw, {"trainLabels.csv": b"image,level", "testLabels.csv": b"image,level"})
    write(raw / "train", {f"{image}.jpeg": b"x" * 5000 for image in IMAGES})
    test = 2 * sum(len(FILES[name]) for name in ("test.zip.001", "test.zip.002"))
    assert enough(raw, monkeypatch, test + 10, splits=("train", "test"), prepared=1)


def test_too_small_a_disk_is_refused_before_anything_is_fetched(kaggle, raw, monkeypatch):
    monkeypatch.setattr(download, "PREPARED_BYTES", 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2.5e9))
    message = r"needs 6\.0 GB more .*2\.5 GB are free.*COMPANION_DATA"
    with pytest.raises(OSError, match=message) as caught:
        download.fetch(TINY, raw)
    assert caught.value.errno == errno.ENOSPC and not downloads(kaggle) and not raw.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("full", ["train.zip.002.part", "train/13_left.jpeg.part"])
def test_a_disk_that_fills_up_is_an_instruction_and_the_next_call_continues(kaggle, raw, full):
    (raw / full).parent.mkdir(parents=True)
    (raw / full).symlink_to("/dev/full")
    with pytest.raises(OSError, match="Make room and run again; it continues") as caught:
        download.fetch(TINY, raw)
    assert caught.value.errno == errno.ENOSPC and not (raw / full.removesuffix(".part")).exists()
    (raw / full).unlink(missing_ok=True)
    kaggle.log.clear()
    download.fetch(TINY, raw)
    assert without_archives(raw) == WHOLE
    assert ("train.zip.001", "bytes=0-") not in downloads(kaggle)


# Archives


@pytest.mark.parametrize("n", [1, 3, 50])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_comes_out_whole_however_it_was_cut(tmp_path, n, compression):
    """One piece of it is empty."""
    pieces = cut("train.zip", zip_of(TRAIN | {"empty": b""}, compression), n) | {"none": b""}
    archive = write(tmp_path / "in", pieces)
    archive.insert(1, archive.pop())
    download.unpack(archive, tmp_path / "out", str)
    assert tree(tmp_path / "out") == TRAIN | {"empty": b""}
    assert tree(tmp_path / "in") == pieces


def test_an_unpacking_broken_off_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    archive, out = write(tmp_path / "in", cut("train.zip", zip_of(TRAIN), 3)), tmp_path / "out"
    whole = paths.write

    def broken(path, save):
        if path.name == "13_right.jpeg":
            path.with_name(f"{path.name}.part").write_bytes(b"half a photogra")
            raise KeyboardInterrupt
        whole(path, save)

    monkeypatch.setattr(paths, "write", broken)
    with pytest.raises(KeyboardInterrupt):
        download.unpack(archive, out, str)
    monkeypatch.setattr(paths, "write", whole)
    first = {path: path.stat().st_ino for path in out.rglob("*.jpeg")}
    assert len(first) == 3 and len(list(out.rglob("*.part"))) == 1
    short = out / "train" / "10_left.jpeg"
    other = out / "train" / "10_right.jpeg"
    short.write_bytes(b"short")
    other.write_bytes(bytes(other.stat().st_size))
    for changed in (short, other):
        del first[changed]
    download.unpack(archive, out, str)
    assert tree(out) == TRAIN
    assert {path: path.stat().st_ino for path in first} == first


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside.jpeg",
        "train/../../outside.jpeg",
        "..\\outside.jpeg",
        "C:\\outside.jpeg",
        "C:x.jpeg",
        "\\\\host\\share\\x.jpeg",
        "a link",
    ],
)
def test_a_member_that_leads_out_of_the_folder_is_refused_before_anything_is_written(
    tmp_path, name
):
    member = zipfile.ZipInfo(name)
    if name == "a link":
        member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = write(tmp_path / "in", {"train.zip": zip_of(TRAIN)})
    with zipfile.ZipFile(archive[0], "a") as zipped:
        zipped.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match=re.escape(f"{name!r} leads elsewhere or is a link")):
        download.unpack(archive, tmp_path / "out", str)
    assert list(tree(tmp_path)) == ["in/train.zip"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_named_with_the_piece_and_comes_out_once_that_is_fetched_again(
    tmp_path, compression
):
    members = {name: data * 20 for name, data in TRAIN.items()}
    good = cut("train.zip", zip_of(members, compression), 3)
    second = bytearray(good["train.zip.002"])
    second[len(second) // 2] ^= 0xFF
    archive = write(tmp_path / "in", good | {"train.zip.002": bytes(second)})
    message = r"train/1\d_\w+\.jpeg is damaged in \S*train\.zip\.002 .* fetch again"
    with pytest.raises(ValueError, match=message) as caught:
        download.unpack(archive, tmp_path / "out", str)
    assert not (tmp_path / "out" / str(caught.value).split()[0]).exists()
    write(tmp_path / "in", good)
    download.unpack(archive, tmp_path / "out", str)
    assert tree(tmp_path / "out") == members


def test_whatever_byte_is_damaged_nothing_wrong_comes_out(tmp_path):
    members = {f"train/{image}.jpeg": NOISE.randbytes(30) + bytes(30) for image in IMAGES[:1]}
    good, counts = zip_of(members, zipfile.ZIP_DEFLATED), {"refused": 0, "whole": 0}
    for at in range(len(good)):
        for value in {good[at] ^ 0xFF, 0} - {good[at]}:
            damaged = good[:at] + bytes([value]) + good[at + 1 :]
            archive = write(tmp_path / "in", {"train.zip": damaged})
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            try:
                download.unpack(archive, tmp_path / "out", str)
                counts["whole"] += 1
            except ValueError:
                counts["refused"] += 1
            for name, data in tree(tmp_path / "out").items():
                assert name.endswith(".part") or data in members.values()
    assert counts["refused"] > counts["whole"] > 0  # dates and attributes may change


def test_a_missing_or_misplaced_piece_is_an_error(tmp_path):
    one, two, three = archive = write(tmp_path, cut("train.zip", zip_of(TRAIN), 3))
    for wrong in ([one, two], [two, three], [three, two, one], [one]):
        with pytest.raises(ValueError, match=r"train\.zip\.00.*: no whole zip, in this order"):
            download.unpack(wrong, tmp_path / "out", str)
    three.rename(tmp_path / "train.zip.003.part")
    with pytest.raises(FileNotFoundError, match=r"train\.zip\.003"):
        download.unpack(archive, tmp_path / "out", str)
    assert not list((tmp_path / "out").rglob("*.jpeg"))


# Counts


@pytest.mark.parametrize(
    ("no_photograph", "no_label", "message"),
    [
        (
            ("13_left", "13_right"),
            (),
            r"holds 4 of 6 photographs, 2 missing; labels without a photograph: "
            r"\['13_left', '13_right'\], without a label: \[\]",
        ),
        # fewer than the competition has, though each has its label
        (("15_right",), ("15_right",), r"holds 5 of 6 photographs, 1 missing; .*: \[\], .*: \[\]"),
        ((), ("15_left",), r"holds 6 of 6 photographs, 0 missing.*without a label: \['15_left'\]"),
    ],
)
def test_photographs_and_labels_that_are_missing_are_counted_and_named(
    kaggle, raw, no_photograph, no_label, message
):
    there = {name: data for name, data in TRAIN.items() if Path(name).stem not in no_photograph}
    lines = TRAIN_LABELS.splitlines()
    labels = "\n".join(line for line in lines if line.split(",")[0] not in no_label)
    kaggle.files |= cut("train.zip", zip_of(there), 3)
    kaggle.files["trainLabels.csv.zip"] = zip_of({"trainLabels.csv": labels})
    with pytest.raises(ValueError, match=message):
        download.fetch(TINY, raw)


def test_a_photograph_that_is_not_kaggles_is_named_and_nothing_fetched_for_it(kaggle, raw):
    download.fetch(TINY, raw)
    kaggle.log.clear()
    write(raw / "train", {"mine.jpeg": b"x"})
    with pytest.raises(ValueError, match=r"holds 7 of 6 .*without a label: \['mine'\]. Remove"):
        download.fetch(TINY, raw)
    assert kaggle.log == []


def test_a_label_table_with_other_columns_is_refused(kaggle, raw):
    write(raw, {"retinopathy_solution.csv": b"<html>,sign in\nx,y\n"})
    with pytest.raises(ValueError, match="the columns <html>, sign in: image, level needed"):
        download.fetch(TINY, raw, splits=("test",))
    assert not (raw / "testLabels.csv").exists()
