"""A zip in several pieces, unpacked where they lie: resumable, checked, and nothing outside its folder."""

import errno
import io
import os
import shutil
import stat
import zipfile
import zlib
from bisect import bisect_right
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from lib import paths

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
)  # what zipfile raises on reading damaged bytes


def unpack(archive, folder, place=str, delete=False):
    """Extract the zip whose bytes are the files `archive`, one after another; return the number of files that are out.

    place   from a member's name to its path below `folder`, or None to leave it in the archive
    delete  the files of `archive`, when every member asked for is out
    The pieces are read where they are, never joined on disk. A file is written beside its place and renamed; one that
    is there with the member's size is left alone. zipfile checks the CRC-32 of every member it reads.
    Raises ValueError for what is no zip, for a damaged member, and, before anything is written, for an archive with a
    link or a name that leads out of `folder`; OSError (ENOSPC) for a full disk.
    """
    archive, folder = [Path(file) for file in archive], Path(folder)
    with room(folder), Chain(archive) as chain:
        try:
            zipped = zipfile.ZipFile(io.BufferedReader(chain, 1 << 20))
            if any(info.header_offset < 0 or not info.filename for info in zipped.infolist()):
                raise zipfile.BadZipFile("its directory is damaged or its beginning not there")
        except DAMAGE as error:
            raise ValueError(
                f"{', '.join(map(str, archive))}: no whole zip, in this order ({error})"
            ) from error
        members = [info for info in zipped.infolist() if not info.is_dir()]
        for info in members:
            name = PureWindowsPath(info.filename)  # knows both kinds of slash, and drives
            if name.anchor or ".." in name.parts or stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(
                    f"{archive[0]}: {info.filename!r} leads elsewhere or is a link; nothing is unpacked"
                )
        members = [(info, folder / path) for info in members if (path := place(info.filename))]
        for info, path in tqdm(members, desc=archive[0].name, unit="file", disable=None):
            if path.exists() and path.stat().st_size == info.file_size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                paths.write(path, partial(_extract, zipped, info))
            except DAMAGE as error:
                first, last = (
                    bisect_right(chain.ends, info.header_offset + more)
                    for more in (0, info.compress_size)
                )
                where = " or ".join(str(file) for file in archive[first : last + 1])
                raise ValueError(
                    f"{info.filename} is damaged in {where} ({error}): delete that and fetch again; what is out stays"
                ) from error
    for file in archive if delete else []:
        file.unlink()
    return len(members)


def _extract(zipped, info, path):
    with zipped.open(info) as member, path.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)


@contextmanager
def room(folder):
    """Turn a full disk into what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno, f"no room below {folder}. Make room and run again; it continues"
        ) from error


class Chain(io.RawIOBase):
    """The bytes of several files as one file, to be read anywhere."""

    def __init__(self, files):
        self.files = [file.open("rb") for file in files]
        self.ends = list(accumulate(file.stat().st_size for file in files))
        self.at = 0

    def readable(self):
        return True

    seekable = readable

    def seek(self, offset, whence=os.SEEK_SET):
        self.at = (0, self.at, self.ends[-1])[whence] + offset
        return self.at  # io.BufferedReader raises OSError where it is negative

    def readinto(self, buffer):
        i = bisect_right(self.ends, self.at)
        if i == len(self.files):
            return 0
        self.files[i].seek(self.at - self.ends[i], os.SEEK_END)
        count = self.files[i].readinto(buffer)
        self.at += count
        return count

    def close(self):
        for file in self.files:
            file.close()
        super().close()
