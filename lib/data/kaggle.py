"""From a Kaggle account to raw photographs on disk: EyePACS (2015) and APTOS (2019) in one tree.

    <folder>/train/<name>.jpeg, .png for APTOS     <folder>/trainLabels.csv (image, level)
    <folder>/test/<name>.jpeg, EyePACS on request  <folder>/testLabels.csv

`fetch` does it all; run again after any error, it continues. A file that was cut off is called
<name>.part until it is whole, a photograph that is out is not unpacked again, and a complete split
asks nothing of Kaggle.
"""

import errno
import io
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate, chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from lib import paths
from lib.data import files

PREPARED_BYTES = 100_000  # a prepared photograph's: 512 pixels, JPEG of quality 95
CHUNK = 1 << 16  # bytes from the network at a time: no more is lost where a connection drops
PAUSES = (2, 15, 60)  # seconds before another attempt, anew after one that brought something
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # zipfile's, on damaged bytes
_TOKEN = (
    "Make a token at https://www.kaggle.com/settings/api and put it into the variable "
    "KAGGLE_API_TOKEN or the file ~/.kaggle/access_token, or put a kaggle.json (username, key) "
    "into ~/.kaggle. Restart the kernel and run again."
)


@dataclass(frozen=True)
class CompetitionSplit:
    """The files that hold one split of a competition's data, and what must come out of them."""

    archive: tuple[str, ...]  # the pieces of a zip; <competition>.zip is Kaggle's of everything
    photographs: str  # a pattern of the photographs' names in the zip
    count: int  # of photographs, each with its label
    labels: str  # the label table's name
    labels_zip: str = ""  # the zip on Kaggle that holds the table; empty where none does
    labels_page: str = ""  # the page where the reader gets the table then


@dataclass(frozen=True)
class Competition:
    """A Kaggle competition."""

    name: str  # as Kaggle's addresses have it
    splits: dict[str, CompetitionSplit]


COLLECTIONS = {
    "eyepacs": Competition(
        "diabetic-retinopathy-detection",
        {
            "train": CompetitionSplit(  # 35.0 GB
                archive=tuple(f"train.zip.00{i}" for i in range(1, 6)),
                photographs="*.jpeg",
                count=35126,
                labels="trainLabels.csv",
                labels_zip="trainLabels.csv.zip",
            ),
            "test": CompetitionSplit(  # 53.3 GB; the labels came afterwards, in the forum
                archive=tuple(f"test.zip.00{i}" for i in range(1, 8)),
                photographs="*.jpeg",
                count=53576,
                labels="retinopathy_solution.csv",
                labels_page="https://www.kaggle.com/competitions/diabetic-retinopathy-detection/"
                "discussion/16149",
            ),
        },
    ),
    "aptos": Competition(
        "aptos2019-blindness-detection",
        {
            "train": CompetitionSplit(  # about 10 GB; nobody has published labels of the test split
                archive=("aptos2019-blindness-detection.zip",),
                photographs="train_images/*.png",
                count=3662,
                labels="train.csv",
                labels_zip="aptos2019-blindness-detection.zip",
            )
        },
    ),
}


def preflight(
    collection: str | Competition, folder: Path, splits: tuple[str, ...] = ("train",)
) -> dict[str, int]:
    """Check credentials, rules and free disk before anything large is fetched.

    Photographs need what their archives need: JPEG and PNG do not compress further.

    Args:
        collection: A name in `COLLECTIONS`, or a `Competition`.
        folder: Where its tree goes. The archives stay there too until somebody deletes them.
        splits: Which of its splits.

    Returns:
        The bytes of each file that `fetch` needs, by name; empty where all is there.

    Raises:
        PermissionError: Without valid credentials (401) or accepted rules (403).
        FileNotFoundError: For files that are not on Kaggle (404), and for test labels that are not
            in `folder`.
        ConnectionError: For too many requests (429), and without a connection.
        OSError: ENOSPC for too little disk.
        ValueError: For a collection or split that does not exist.
    """
    competition = _competition(collection, splits)
    missing = {name: _missing(folder, name, competition.splits[name]) for name in splits}
    sizes = _sizes(competition.name, folder, list(chain(*missing.values())))
    need = 0
    for name in splits:
        need += PREPARED_BYTES * competition.splits[name].count
        here = sum(_size(path) for path in (folder / name).glob("*"))
        for file in missing[name]:
            here += _size(folder / file) + _size(folder / f"{file}.part")
        need += max(0, 2 * sum(sizes[file] for file in missing[name]) - here)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"{folder} needs {need / 1e9:.1f} GB more (archives, photographs, the prepared set), "
            f"{free / 1e9:.1f} GB are free. Make room, move data/ to a larger disk with "
            "COMPANION_DATA, or ask for fewer splits",
        )
    return sizes


def fetch(
    collection: str | Competition, folder: Path, splits: tuple[str, ...] = ("train",)
) -> Path:
    """Download splits of a collection, unpack them, check the counts; returns the folder.

    `preflight`, which takes the same arguments, runs first. Raises as it and `unpack` do, and:

    Raises:
        ValueError: Where sizes differ from Kaggle's listing, for a label table that cannot be read,
            and where photographs and labels are not as many as the competition has, or do not pair
            up.
        RuntimeError: Another run is downloading to `folder`.
    """
    sizes = preflight(collection, folder, splits)
    competition = _competition(collection, splits)
    with paths.alone(folder, "downloading to"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in splits:
            _fetch(competition, folder, name, sizes)
    return folder


def _fetch(competition: Competition, folder: Path, name: str, sizes: dict[str, int]) -> None:
    """Download one split, unpack it, check it."""
    split = competition.splits[name]
    archives = [split.archive]
    if split.labels_zip not in ("", *split.archive):
        archives.append((split.labels_zip,))
    for archive in archives:
        pieces = [folder / file for file in archive]
        for piece in pieces:
            if piece.name in sizes:
                _download(competition.name, piece, sizes[piece.name])
        if all(piece.exists() for piece in pieces):
            unpack(pieces, folder, partial(_place, name, split))
    _check(folder, name, split)
    print(f"{folder / name}: {split.count:,} photographs and their labels")


def unpack(archive: list[Path], folder: Path, place: Callable[[str], str | None]) -> None:
    """Extract a zip that lies in several pieces, which are read where they are, never joined.

    A file is written beside its place and renamed; one that is there with the member's size and
    CRC-32 is left alone. zipfile checks the CRC-32 of every member that it reads.

    Args:
        archive: The files whose bytes, one after another, are the zip.
        folder: Where its members go.
        place: From a member's name to its path below `folder`, or to None to leave it out.

    Raises:
        ValueError: For what is no zip, for a damaged member, and, before anything is written, for
            an archive with a link or with a name that leads out of `folder`.
        OSError: ENOSPC for a full disk.
    """
    with _room(folder), _Chain(archive) as joined:
        try:
            zipped = zipfile.ZipFile(io.BufferedReader(joined, 1 << 20))
            if any(info.header_offset < 0 or not info.filename for info in zipped.infolist()):
                raise zipfile.BadZipFile("its directory is damaged or its beginning not there")
        except _DAMAGE as error:
            files = ", ".join(map(str, archive))
            raise ValueError(f"{files}: no whole zip, in this order ({error})") from error
        wanted = []
        for info in zipped.infolist():
            name = PureWindowsPath(info.filename)  # knows both kinds of slash, and drives
            if name.anchor or ".." in name.parts or stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(
                    f"{archive[0]}: {info.filename!r} leads elsewhere or is a link; nothing is "
                    "unpacked"
                )
            if not info.is_dir() and (path := place(info.filename)):
                wanted.append((info, folder / path))
        for info, path in tqdm(wanted, desc=archive[0].name, unit="file", disable=None):
            if _size(path) == info.file_size and path.exists() and _crc(path) == info.CRC:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                paths.write(path, partial(_extract, zipped, info))
            except _DAMAGE as error:
                first = joined.piece(info.header_offset)
                last = joined.piece(info.header_offset + info.compress_size)
                where = " or ".join(str(file) for file in archive[first : last + 1])
                raise ValueError(
                    f"{info.filename} is damaged in {where} ({error}): delete that and fetch "
                    "again; what is out stays"
                ) from error


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    with zipped.open(info) as member, path.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)


def _crc(path: Path) -> int:
    """The CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return crc


class _Chain(io.RawIOBase):
    """The bytes of several files as one file that can be read anywhere."""

    def __init__(self, files: list[Path]) -> None:
        self.files = [file.open("rb") for file in files]
        self.ends = list(accumulate(file.stat().st_size for file in files))
        self.at = 0

    def piece(self, offset: int) -> int:
        """The number of the file that holds the byte at `offset`."""
        return bisect_right(self.ends, offset)

    def readable(self) -> bool:
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = (0, self.at, self.ends[-1])[whence] + offset
        return self.at  # io.BufferedReader raises OSError where it is negative

    def readinto(self, buffer: memoryview) -> int:
        i = self.piece(self.at)
        if i == len(self.files):
            return 0
        self.files[i].seek(self.at - self.ends[i], os.SEEK_END)
        count = self.files[i].readinto(buffer)
        self.at += count
        return count

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


def _competition(collection: str | Competition, splits: tuple[str, ...]) -> Competition:
    if isinstance(collection, str):
        if collection not in COLLECTIONS:
            raise ValueError(
                f"collection is {collection!r}: one of {', '.join(COLLECTIONS)}, or a Competition"
            )
        collection = COLLECTIONS[collection]
    if isinstance(splits, str) or not set(splits) <= set(collection.splits):
        known = ", ".join(collection.splits)
        raise ValueError(f"splits is {splits!r}: a tuple of {known} for {collection.name}")
    return collection


def _photographs(folder: Path, name: str, split: CompetitionSplit) -> set[str]:
    """The names of the photographs that are out."""
    pattern = PurePosixPath(split.photographs).name
    return {path.stem for path in (folder / name).glob(pattern)}


def _labels(folder: Path, name: str, split: CompetitionSplit) -> Path:
    """The label table: ours where it has been written, else as Kaggle names it."""
    ours = folder / f"{name}Labels.csv"
    return ours if ours.exists() else folder / split.labels


def _missing(folder: Path, name: str, split: CompetitionSplit) -> list[str]:
    """The files to fetch: the photographs' unless all are out, the label table's unless it is."""
    files = []
    if len(_photographs(folder, name, split)) < split.count:
        files += split.archive
    if not _labels(folder, name, split).exists():
        if not split.labels_zip:
            raise FileNotFoundError(
                f"Kaggle's files hold no labels of the {name} split. Download {split.labels}, "
                f"attached to {split.labels_page}, and put it into {folder}; or leave this split "
                "out."
            )
        files.append(split.labels_zip)
    return list(dict.fromkeys(files))  # of APTOS, one zip holds both


def _place(name: str, split: CompetitionSplit, member: str) -> str | None:
    """Where a member of an archive goes: photographs below the split's name, the label table."""
    if fnmatchcase(member, split.photographs):
        return f"{name}/{PurePosixPath(member).name}"
    return member if member == split.labels else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(folder: Path, name: str, split: CompetitionSplit) -> None:
    """Write <name>Labels.csv unless it is there, and hold it against the photographs."""
    table = files.read_table(_labels(folder, name, split))
    table = table.rename(columns={"id_code": "image", "diagnosis": "level"})
    if not {"image", "level"} <= set(table):
        raise ValueError(
            f"the labels for {folder / name} have the columns {', '.join(table)}: image, level "
            "needed"
        )
    ours = folder / f"{name}Labels.csv"
    if not ours.exists():
        paths.write(ours, partial(table[["image", "level"]].to_csv, index=False))
    there = _photographs(folder, name, split)
    labelled = set(table["image"])
    if len(there) != split.count or there != labelled:
        raise ValueError(
            f"{folder / name} holds {len(there):,} of {split.count:,} photographs, "
            f"{split.count - len(there):,} missing; labels without a photograph: "
            f"{sorted(labelled - there)[:5]}, without a label: {sorted(there - labelled)[:5]}. "
            "Remove what is not Kaggle's and fetch again"
        )


def _client() -> Any:
    """Kaggle's client with whatever credentials it finds."""
    with redirect_stdout(io.StringIO()):
        try:
            # Its import authenticates already; without credentials it prints and exits.
            from kaggle.api.kaggle_api_extended import KaggleApi

            client = KaggleApi()
            client.authenticate()
        except SystemExit:
            raise PermissionError(f"no valid Kaggle credentials found. {_TOKEN}") from None
    return client


def _ask(client: Any, competition: str, file: str) -> requests.Response:
    """Kaggle's answer to a request for a file, of which nothing but the head is read.

    The answer's own request is for the link it led to, good for minutes.
    """
    from kagglesdk.competitions.types import competition_api_service as types

    with client.build_kaggle_client() as connection:
        service = connection.competitions.competition_api_client
        if file == f"{competition}.zip":
            request = types.ApiDownloadDataFilesRequest()
            download = service.download_data_files
        else:
            request = types.ApiDownloadDataFileRequest()
            request.file_name = file
            download = service.download_data_file
        request.competition_name = competition
        answer = download(request)
    answer.close()
    return answer


def _sizes(competition: str, folder: Path, wanted: list[str]) -> dict[str, int]:
    """The bytes of each file from Kaggle's listing, where we may download it.

    Kaggle lists files to those who have not accepted the rules, too. So the smallest file is asked
    for; if that is the zip of everything, which is in no listing, the answer's head says its size.
    """
    if not wanted:
        return {}
    whole = f"{competition}.zip"
    sizes = {}
    with _explained(folder, competition):
        client = _client()
        token = ""
        while token is not None and not set(wanted) <= {*sizes, whole}:
            page = client.competition_list_files(competition, page_token=token, page_size=200)
            sizes |= {file.name: file.total_bytes for file in page.files}
            token = page.next_page_token or None
        if absent := set(wanted) - {*sizes, whole}:
            raise FileNotFoundError(
                f"{competition} on Kaggle has no {sorted(absent)}, but {sorted(sizes)}"
            )
        smallest = min(wanted, key=lambda file: sizes.get(file, 0))
        answer = _ask(client, competition, smallest)
        if smallest == whole:
            if "Content-Length" not in answer.headers:
                raise ConnectionError(f"Kaggle does not say how large {whole} is: run again later")
            sizes[whole] = int(answer.headers["Content-Length"])
    return {file: sizes[file] for file in wanted}


def _download(competition: str, path: Path, size: int) -> None:
    """Fetch path.name, of `size` bytes, from where <path>.part ends.

    The client's own download gives a partial file the final name, and writes the text of an error
    over it when a link has expired (Kaggle/kaggle-cli#1179): the link is the client's, the transfer
    ours.
    """
    if _size(path) == size:
        return
    part = path.with_name(f"{path.name}.part")
    if _size(path) > _size(part):  # a browser or the client left it unfinished
        os.replace(path, part)
    pauses = iter(PAUSES)
    with _explained(path.parent, competition):
        client = _client()
        while (have := _size(part)) != size:
            if have > size:
                raise ValueError(
                    f"{part} has {have:,} bytes, {path.name} on Kaggle {size:,}: delete it and run "
                    "again"
                )
            try:
                _continue(_ask(client, competition, path.name).request, part, have, size)
                continue
            except requests.RequestException as error:
                failure = _disarmed(error)
            # Not within `except`: who interrupts the pause there is shown the failure, too.
            if isinstance(failure, requests.HTTPError) and failure.response.status_code < 500:
                raise failure
            if _size(part) > have:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise failure
            time.sleep(pause)
    os.replace(part, path)
    print(f"{path}: {size:,} bytes")


def _continue(request: requests.PreparedRequest, part: Path, have: int, size: int) -> None:
    """Append to `part`, which has the first `have` bytes of `size`, what is still missing."""
    headers = {**request.headers, "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    options = {"data": request.body, "headers": headers, "stream": True, "timeout": 60}
    with requests.request(request.method, request.url, **options) as answer:
        answer.raise_for_status()
        if answer.status_code == 200:  # a server without ranges begins at the beginning
            have = 0
        total = int(answer.headers.get("Content-Length", 0)) + have
        if total != size:
            raise ValueError(
                f"Kaggle lists {part.stem} with {size:,} bytes and sends {total:,}; nothing is "
                "written"
            )
        progress = {"initial": have, "total": size, "unit": "B", "unit_scale": True}
        with (
            tqdm(desc=part.stem, disable=None, **progress) as bar,
            part.open("ab" if have else "wb") as file,
        ):
            for chunk in answer.iter_content(CHUNK):
                bar.update(file.write(chunk))


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Turn a full disk into what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno, f"no room below {folder}. Make room and run again; it continues"
        ) from error


@contextmanager
def _explained(folder: Path, competition: str) -> Iterator[None]:
    """Turn what Kaggle answers, and a full disk, into what to do about it.

    No error names a link: one that is signed lets anybody download who reads a saved notebook.
    """
    page = f"https://www.kaggle.com/competitions/{competition}"
    try:
        with _room(folder):
            yield
    except requests.HTTPError as error:
        status = error.response.status_code
        seconds = error.response.headers.get("Retry-After")
        answers = {
            401: (PermissionError, f"Kaggle does not accept the credentials. {_TOKEN}"),
            403: (
                PermissionError,
                f"Sign in, accept the rules at {page}/rules (where the competition is over: Late "
                "Submission), verify your phone at https://www.kaggle.com/settings, and run again",
            ),
            404: (FileNotFoundError, f"{page}/data lists the files there are"),
        }
        wait = f"Wait {f'{seconds} s' if seconds else 'an hour'} and run again; it continues"
        kind, advice = answers.get(status, (ConnectionError, wait))
        said = f"{_disarmed(error)}, from {_host(error.response)}"
        raise kind(f"{competition}: Kaggle answers {status} ({said}). {advice}") from None
    except requests.RequestException as error:
        what = f"{type(_disarmed(error)).__name__}, to {_host(error.request)}"
        raise ConnectionError(
            f"the connection to Kaggle failed ({what}). Run again; it continues"
        ) from None


def _host(about: Any) -> str:
    """The host that a request, or an answer, is of."""
    return urlsplit(getattr(about, "url", None) or "").hostname or "an unknown host"


def _disarmed(error: requests.RequestException) -> requests.RequestException:
    """The error, its text without any link: IPython may show it with the variables of a frame."""
    error.args = (re.sub(r"\S*(://|\?|url: /)\S*", "(a link)", str(error)),)
    return error
