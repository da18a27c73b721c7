"""From a Kaggle account to raw photographs on disk: EyePACS (2015) and APTOS (2019), in the tree `lib.data.fundus` prepares.

    <folder>/train/<name>.jpeg, .png for APTOS     <folder>/trainLabels.csv (image, level)
    <folder>/test/<name>.jpeg, EyePACS on request  <folder>/testLabels.csv

`fetch` does it all; run again after any error it continues. A file cut off is <name>.part until it is whole, a
photograph that is out is not unpacked again, and a complete part asks nothing of Kaggle.
"""

import errno
import io
import os
import shutil
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

import pandas as pd
import requests
from tqdm import tqdm

from lib import paths
from lib.data.archive import room, unpack

CHUNK = 1 << 16  # bytes from the network at a time: no more is lost where a connection drops
PAUSES = (
    2,
    15,
    60,
)  # seconds before another attempt, counted anew after every attempt that brought something
TOKEN = (
    "Make a token at https://www.kaggle.com/settings/api and put it into the variable KAGGLE_API_TOKEN or the file "
    "~/.kaggle/access_token, or put a kaggle.json (username, key) into ~/.kaggle. Restart the kernel and run again."
)


@dataclass(frozen=True)
class Part:
    """The files that hold one part of a competition's data, and what must come out of them."""

    archive: tuple  # pieces of a zip, as Kaggle lists them; <competition>.zip is Kaggle's zip of everything, unlisted
    photographs: str  # the photographs' names in the zip, a pattern
    count: int  # photographs, each with its label
    table: str  # the label table's name; id_code and diagnosis are APTOS' words for image and level
    source: str  # the zip that holds it, or the page where the reader gets it


@dataclass(frozen=True)
class Collection:
    """A Kaggle competition and its `Part`s, by name."""

    competition: str
    parts: dict


# EyePACS: 35.0 + 53.3 GB, test labels attached to the forum afterwards. APTOS: about 10 GB, no test labels.
FORUM = "https://www.kaggle.com/competitions/diabetic-retinopathy-detection/discussion/16149"
TRAIN, TEST = (
    tuple(f"{name}.zip.{i:03}" for i in range(1, n + 1)) for name, n in (("train", 5), ("test", 7))
)
APTOS = "aptos2019-blindness-detection"
COLLECTIONS = {
    "eyepacs": Collection(
        "diabetic-retinopathy-detection",
        {
            "train": Part(TRAIN, "*.jpeg", 35126, "trainLabels.csv", "trainLabels.csv.zip"),
            "test": Part(TEST, "*.jpeg", 53576, "retinopathy_solution.csv", FORUM),
        },
    ),
    "aptos": Collection(
        APTOS,
        {"train": Part((f"{APTOS}.zip",), "train_images/*.png", 3662, "train.csv", f"{APTOS}.zip")},
    ),
}


def preflight(collection, folder, parts=("train",), prepared_bytes=100_000):
    """Check credentials, rules and free disk; return {file: bytes} of what `fetch` needs, {} where all is there.

    collection      a name in `COLLECTIONS`, or a `Collection`; `parts` of it
    prepared_bytes  what a prepared photograph takes on the same disk: 100 kB at 512 pixels, JPEG quality 95
    Photographs need what their archives need: JPEG and PNG do not compress further. Kaggle lists files to those who
    have not accepted the rules, too; so the smallest file is asked for, and only the answer's head read.
    Raises PermissionError without valid credentials (401) or accepted rules (403), FileNotFoundError for files that are
    not on Kaggle (404) and test labels that are not in `folder`, ConnectionError for too many requests (429) and no
    connection, OSError (ENOSPC) for too little disk, ValueError for a collection or part that does not exist.
    """
    collection, folder = _collection(collection, parts), Path(folder).expanduser()
    wanted = {name: _wanted(folder, name, collection.parts[name]) for name in parts}
    for name in parts:
        table, source = collection.parts[name].table, collection.parts[name].source
        if source.startswith("https:") and not any(
            (folder / t).exists() for t in (table, f"{name}Labels.csv")
        ):
            raise FileNotFoundError(
                f"Kaggle's files hold no labels of the {name} part. Download {table}, attached to {source}, and put it "
                f"into {folder}; or leave this part out."
            )
    files = _sizes(
        collection.competition, folder, [file for files in wanted.values() for file in files]
    )
    need = prepared_bytes * sum(collection.parts[name].count for name in parts)
    for name in parts:
        here = [folder / file for piece in wanted[name] for file in (piece, f"{piece}.part")]
        here += (folder / name).glob("*")
        need += max(0, 2 * sum(files[piece] for piece in wanted[name]) - sum(map(_size, here)))
    free = shutil.disk_usage(
        next(p for p in (folder, *folder.absolute().parents) if p.exists())
    ).free
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"{folder} needs {need / 1e9:.1f} GB more (archives, photographs, the prepared set), {free / 1e9:.1f} GB "
            "are free. Make room, move data/ to a larger disk with COMPANION_DATA, or ask for fewer parts",
        )
    return files


def fetch(collection, folder, parts=("train",), prepared_bytes=100_000, delete=False):
    """Download `parts` of a collection, unpack them into `folder`, check the counts; return `folder`.

    Arguments as for `preflight`, which runs first. delete: a part's archives, once its photographs are counted.
    Raises as `preflight` and `unpack` do, and ValueError where sizes differ from the listing, or photographs and labels
    are not as many as the competition has or do not pair up.
    """
    files = preflight(collection, folder, parts, prepared_bytes)
    collection, folder = _collection(collection, parts), Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for name in parts:
        part = collection.parts[name]
        archives = [
            [folder / file for file in names]
            for names in dict.fromkeys([part.archive, (part.source,)])
        ]
        for archive in archives:
            for file in archive:
                if file.name in files:
                    _download(collection.competition, file, files[file.name])
            if all(file.exists() for file in archive):
                unpack(archive, folder, partial(_place, name, part))
        _check(folder, name, part)
        for file in [file for archive in archives for file in archive if delete and file.exists()]:
            file.unlink()
        print(f"{folder / name}: {part.count:,} photographs and their labels")
    return folder


def _collection(collection, parts):
    if isinstance(collection, str) and collection not in COLLECTIONS:
        raise ValueError(
            f"collection is {collection!r}: one of {', '.join(COLLECTIONS)}, or a Collection"
        )
    collection = COLLECTIONS[collection] if isinstance(collection, str) else collection
    if isinstance(parts, str) or not set(parts) <= set(collection.parts):
        raise ValueError(
            f"parts is {parts!r}: a tuple of {', '.join(collection.parts)} for {collection.competition}"
        )
    return collection


def _wanted(folder, name, part):
    """The files to fetch: those of the photographs unless all are out, that of the label table unless it is."""
    wanted = [] if len(_photographs(folder, name, part)) == part.count else [*part.archive]
    if not (folder / f"{name}Labels.csv").exists() and not part.source.startswith("https:"):
        wanted.append(part.source)
    return list(dict.fromkeys(wanted))


def _place(name, part, member):
    if fnmatchcase(member, part.photographs):
        return f"{name}/{PurePosixPath(member).name}"
    return member if member == part.table else None


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _photographs(folder, name, part):
    return {path.stem for path in (folder / name).glob(PurePosixPath(part.photographs).name)}


def _check(folder, name, part):
    """Write <name>Labels.csv where the table has another name or other columns; hold it against the photographs."""
    path = folder / f"{name}Labels.csv"
    table = pd.read_csv(path if path.exists() else folder / part.table, dtype=str)
    table = table.rename(columns={"id_code": "image", "diagnosis": "level"})
    if not {"image", "level"} <= set(table):
        raise ValueError(
            f"the labels for {folder / name} have the columns {', '.join(table)}: image, level needed"
        )
    if not path.exists():
        paths.write(path, partial(table[["image", "level"]].to_csv, index=False))
    there, labelled = _photographs(folder, name, part), set(table["image"])
    if len(there) != part.count or there != labelled:
        raise ValueError(
            f"{folder / name} holds {len(there):,} of {part.count:,} photographs, {part.count - len(there):,} missing; "
            f"labels without a photograph: {sorted(labelled - there)[:5]}, without a label: "
            f"{sorted(there - labelled)[:5]}. Remove what is not Kaggle's and fetch again"
        )


def _client():
    """Kaggle's client with whatever credentials it finds. Its import authenticates already, and both print and exit."""
    with redirect_stdout(io.StringIO()):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi

            client = KaggleApi()
            client.authenticate()
        except SystemExit:
            raise PermissionError(f"no valid Kaggle credentials found. {TOKEN}") from None
    return client


def _ask(client, competition, file):
    """Kaggle's answer to a request for a file, its body unread: the link it led to, good for minutes, and the head."""
    from kagglesdk.competitions.types import competition_api_service as types

    whole = file == f"{competition}.zip"
    request = types.ApiDownloadDataFilesRequest() if whole else types.ApiDownloadDataFileRequest()
    request.competition_name = competition
    if not whole:
        request.file_name = file
    with client.build_kaggle_client() as kaggle:
        service = kaggle.competitions.competition_api_client
        answer = (service.download_data_files if whole else service.download_data_file)(request)
    answer.close()
    return answer


def _sizes(competition, folder, wanted):
    """{file: bytes} from Kaggle's listing; the zip of everything is not in it, there the answer's head says."""
    if not wanted:
        return {}
    with _explained(folder, competition):
        client, sizes, token, whole = _client(), {}, "", f"{competition}.zip"
        while not set(wanted) <= {*sizes, whole} and token is not None:
            page = client.competition_list_files(competition, page_token=token, page_size=200)
            sizes |= {file.name: file.total_bytes for file in page.files}
            token = page.next_page_token or None
        if absent := set(wanted) - {*sizes, whole}:
            raise FileNotFoundError(
                f"{competition} on Kaggle has no {sorted(absent)}, but {sorted(sizes)}"
            )
        answer = _ask(client, competition, min(wanted, key=lambda file: sizes.get(file, 0)))
        return {file: sizes.get(file) or int(answer.headers["Content-Length"]) for file in wanted}


def _download(competition, path, size):
    """Fetch path.name, `size` bytes, from where <path>.part ends.

    The client's download_file gives a partial file the final name, and writes the text of an error over it when a link
    has expired (Kaggle/kaggle-cli#1179): the link is the client's, the transfer ours.
    """
    if _size(path) == size:
        return
    part, pauses = path.with_name(f"{path.name}.part"), iter(PAUSES)
    if _size(path) > _size(part):  # a browser or the client left it unfinished
        os.replace(path, part)
    with _explained(path.parent, competition):
        client = _client()
        while (have := _size(part)) != size:
            if have > size:
                raise ValueError(
                    f"{part} has {have:,} bytes, {path.name} on Kaggle {size:,}: delete it and run again"
                )
            try:
                _continue(_ask(client, competition, path.name).request, part, have, size)
            except requests.RequestException as error:
                if isinstance(error, requests.HTTPError) and error.response.status_code < 500:
                    raise
                pauses = iter(PAUSES) if _size(part) > have else pauses
                if (pause := next(pauses, None)) is None:
                    raise
                time.sleep(pause)
    os.replace(part, path)
    print(f"{path}: {size:,} bytes")


def _continue(request, part, have, size):
    headers = {**request.headers, "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    options = {"data": request.body, "headers": headers, "stream": True, "timeout": 60}
    with requests.request(request.method, request.url, **options) as answer:
        answer.raise_for_status()
        if answer.status_code == 200:  # a server without ranges begins at the beginning
            have = 0
        total = int(answer.headers.get("Content-Length", 0)) + have
        if total != size:
            raise ValueError(
                f"Kaggle lists {part.stem} with {size:,} bytes and sends {total:,}; nothing is written"
            )
        bar = tqdm(
            desc=part.stem, initial=have, total=size, unit="B", unit_scale=True, disable=None
        )
        with bar, part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                bar.update(file.write(chunk))


@contextmanager
def _explained(folder, competition=""):
    """Turn what Kaggle answers, and a full disk, into what to do about it."""
    page = f"https://www.kaggle.com/competitions/{competition}"
    try:
        with room(folder):
            yield
    except requests.HTTPError as error:
        status, wait = error.response.status_code, error.response.headers.get("Retry-After")
        known = {
            401: (PermissionError, f"Kaggle does not accept the credentials. {TOKEN}"),
            403: (
                PermissionError,
                f"Sign in, accept the rules at {page}/rules (where the competition is over: Late Submission), verify "
                "your phone at https://www.kaggle.com/settings, and run again",
            ),
            404: (FileNotFoundError, f"{page}/data lists the files there are"),
        }
        later = (
            ConnectionError,
            f"Wait {f'{wait} s' if wait else 'an hour'} and run again; it continues",
        )
        kind, advice = known.get(status, later)
        raise kind(f"{competition}: Kaggle answers {status} ({error}). {advice}") from error
    except requests.RequestException as error:
        raise ConnectionError(
            f"the connection to Kaggle failed ({error}). Run again; it continues"
        ) from error
