"""From raw fundus photographs to a prepared data set: selective cropping, one size, three splits.

`prepare` reads a collection as Kaggle ships EyePACS (`lib.data.manifest`) and writes a folder that
`FundusDataset` hands to the training, as CLEAR-DR does:

    images/<name>.webp  size x size RGB, the retina from edge to edge, black where the camera cut it
    masks/<name>.png    lesions in the same geometry, bit i for retina.MASKS[i], where raw has masks
    manifest.csv        image, patient, eye, grade, split, left, top, right, bottom, width, height,
                        sha256, source
    rejects.csv         image, reason: all photographs and labels of the chosen eye that are not in
                        the manifest
    dataset.json        the request, the counts, the training split's channel means and deviations,
                        versions

Of several collections, the names of images and patients begin with their source: utem_Patient001_L.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2
from tqdm import tqdm

from lib import paths
from lib.data import retina
from lib.data.files import content_hashes
from lib.data.manifest import (
    EYE_CHOICES,
    MADE_BY,
    OFF_SCALE,
    draw_split,
    fingerprint,
    has_own_split,
    read_labels,
    reject_duplicates,
)

_WRITTEN = [name.upper() for name in retina.IMAGE_FORMATS]  # as Pillow calls them
_CONTRASTS = ("none", "graham")
_BOX = ["left", "top", "right", "bottom"]
_COLUMNS = [*"image patient eye grade split".split(), *_BOX, *"width height sha256 source".split()]
_RECORD = "image sha256 mask reason box width height sums squares".split()
PREPARATION = ("fingerprint", "size", "crop", "contrast", "mean", "std")
IN_MEMORY = 2 << 30  # bytes of a split up to which it is read at once


def prepare(
    raw: str | Path | Sequence[str | Path],
    out: str | Path,
    size: int,
    eye: str = "right",
    test_share: float = 0.1,
    seed: int = 0,
    crop: bool = True,
    contrast: str = "none",
    file_format: str = "webp",
    executor: Executor | None = None,
) -> Path:
    """Crop, resize and split the photographs of one collection, or several, into a data set.

    The result does not depend on the number of workers. A run that was interrupted, whatever the
    moment, goes on where it was and gives the same bytes; what has changed since is prepared anew.
    The data set gets its name only when it is whole; one that the same request made of the same
    content is used again, any other is kept beside as `<out>.1`, `.2`, ... A bad photograph goes to
    rejects.csv; a file that cannot be read, though it may be good, ends the run.

    Args:
        raw: a collection, see `lib.data.manifest.read_labels`; or several, in any order, each with
            a split of its own, which it keeps.
        out: folder of the data set.
        size: side of a prepared photograph in pixels, 16 to 2048.
        eye: "right" (as CLEAR-DR), "left" or "both".
        test_share: of the patients, 0.01 to 0.5, where the collection has no split of its own.
        seed: of the split.
        crop: False takes whole frames, for photographs that are cropped already.
        contrast: "none", or "graham" to take off the local average (`lib.data.retina.graham`).
        file_format: "webp", lossless, or "jpeg" of quality 95, a third of the size.
        executor: any concurrent.futures.Executor, such as Dask's Client(...).get_executor() whose
            workers see the same files; by default a process a core. A script calls this below
            `if __name__ == "__main__"`.

    Returns:
        `out`, absolute.

    Raises:
        ValueError: a bad request or collection; `out` is damaged.
        FileNotFoundError: the collection lacks labels or photographs.
        FileExistsError: `out` is something else.
        RuntimeError: another run is preparing `out`; the collection changed meanwhile; a worker
            process ended.
        OSError: the disk is full, or a file cannot be read now.
    """
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}; choose a side of 16 to 2048 pixels.")
    if not 0.01 <= test_share <= 0.5:
        raise ValueError(
            f"test_share is {test_share}; choose a share of 0.01 to 0.5 (CLEAR-DR: 0.1)."
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**32).")
    for name, value, known in (
        ("eye", eye, EYE_CHOICES),
        ("contrast", contrast, _CONTRASTS),
        ("file_format", file_format, retina.IMAGE_FORMATS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")

    collections, out = _by_name(raw), Path(out).absolute()
    request = {
        "source": "+".join(collections),
        "fingerprint": _fingerprint(collections),
        "size": size,
        "eye": eye,
        "test_share": test_share,
        "seed": seed,
        "crop": crop,
        "contrast": contrast,
        "format": file_format,
    }
    if _holds(out, request):
        return out

    with paths.alone(out, "preparing"):
        if _holds(out, request):  # another run has made it since
            return out
        table, rejects = read_collections(list(collections.values()), eye)
        settings = {name: value for name, value in request.items() if name != "fingerprint"}
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        unfinished = out.with_name(f"{out.name}.{digest}.partial")
        records = _prepare_photographs(table, collections, unfinished, request, executor)
        read = {image: record for image, record in records.items() if "sha256" in record}
        changed = _fingerprint(collections) != request["fingerprint"]
        if changed or _stale(table, collections, read):
            raise RuntimeError(
                f"{_folders(collections)} changed while it was being prepared: wait until nothing "
                "writes there, then run again. What has not changed is not prepared anew."
            )
        _finish(unfinished, list(collections), table, records, rejects, request)
        if out.exists():
            kept = paths.aside(out)
            print(f"{out.name} held a data set of another request, kept as {kept.name}")
        os.replace(unfinished, out)
    return out


def _holds(out: Path, request: dict) -> bool:
    """Whether `out` is what the request asks for; FileExistsError where it is no data set."""
    if not out.exists():
        return False
    if not (out / "dataset.json").exists():
        raise FileExistsError(
            f"{out} exists and is no prepared data set. Move it away or choose another folder."
        )
    return request.items() <= _about(out).items()


def _by_name(raw: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """The collections by their names, in order; ValueError where two have one name."""
    folders = [raw] if isinstance(raw, str | Path) else raw
    named = {Path(folder).name: Path(folder) for folder in folders}
    collections = dict(sorted(named.items()))
    if not collections:
        raise ValueError("raw names no collection: give one, or a list of several.")
    if len({prefix(name).casefold() for name in collections}) < len(folders):
        names = ", ".join(str(folder) for folder in folders)
        raise ValueError(
            f"of {names} two have one name: name their folders apart, by more than _ or -, since "
            "the photographs of several collections are named after theirs."
        )
    return collections


def prefix(source: str) -> str:
    """What the names of a collection's images and patients begin with: up to the first _."""
    return source.replace("_", "-") + "_"


def _folders(collections: dict[str, Path]) -> str:
    return " or ".join(map(str, collections.values()))


def _fingerprint(collections: dict[str, Path]) -> str:
    """The hash of what is in the collections."""
    prints = {source: fingerprint(raw) for source, raw in collections.items()}
    if len(prints) == 1:
        return prints.popitem()[1]
    return hashlib.sha256(json.dumps(prints).encode()).hexdigest()


def read_collections(
    raw: str | Path | Sequence[str | Path], eye: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The tables of `read_labels`, one below the other, with the columns source and mask_file.

    Args:
        raw: a collection, or several, whose images and patients are named after their source.
        eye: as for `read_labels`.

    Returns:
        A row for each photograph, mask_file None where it has no masks; and, by image, why a
        photograph or a label is left out.

    Raises:
        ValueError: as `read_labels`; of several, one has no split of its own or other grades than
            0 to 4, or two have one name.
        FileNotFoundError: as `read_labels`.
    """
    collections = _by_name(raw)
    tables = []
    rejects = {}
    for source, raw in collections.items():
        table, left_out = read_labels(raw, eye)
        table["source"] = source
        table["mask_file"] = [_mask_of(raw, image) for image in table["image"]]
        if len(collections) > 1:
            for image, reason in left_out.items():
                if reason.startswith(OFF_SCALE) and reason != f"{OFF_SCALE}''":
                    raise ValueError(
                        f"{source} has other grades than the collections it is to be joined with: "
                        f"of {image}, {reason}. Bring the column level of {raw} to 0 to 4 (ICDR), "
                        f"or prepare {source} alone."
                    )
            if len(table) and not has_own_split(table):
                raise ValueError(
                    f"{source} has no split of its own, so it cannot be joined with others: add a "
                    f"column split (train, val, test) to the label table of {raw}, the same for "
                    f"all photographs of a patient, or prepare {source} alone."
                )
            table[["image", "patient"]] = prefix(source) + table[["image", "patient"]]
            left_out = {prefix(source) + image: reason for image, reason in left_out.items()}
        tables.append(table)
        rejects |= left_out
    return pd.concat(tables, ignore_index=True), rejects


def _mask_of(raw: Path, image: str) -> Path | None:
    """The mask file of a photograph of the collection `raw`, if there is one."""
    mask = raw / "masks" / f"{image}.png"
    return mask if os.path.lexists(mask) else None


def _stale(table: pd.DataFrame, collections: dict[str, Path], records: dict[str, dict]) -> set[str]:
    """The names whose records are not of the photographs and masks that are there now."""
    read = [image for image, record in records.items() if "sha256" in record]
    known = table[table["image"].isin(read)]
    hashes = {}
    for source, raw in collections.items():
        rows = known[known["source"] == source]
        hashes |= content_hashes(raw, [*rows["path"], *filter(None, rows["mask_file"])])
    stale = set(records) - set(known["image"])
    for row in known.itertuples():
        record = records[row.image]
        if (hashes[row.path], hashes.get(row.mask_file)) != (record["sha256"], record.get("mask")):
            stale.add(row.image)
    return stale


def _prepare_photographs(
    table: pd.DataFrame,
    collections: dict[str, Path],
    unfinished: Path,
    request: dict,
    executor: Executor | None,
) -> dict[str, dict]:
    """Prepare every photograph of the table that an interrupted run has not: {image: record}.

    Each record is kept in the journal as soon as its photograph is written.
    """
    for folder in ("images", "masks"):
        (unfinished / folder).mkdir(parents=True, exist_ok=True)
    journal = paths.Journal(unfinished / "journal.jsonl")
    records = {}
    for record in journal.records:
        image = record["image"]
        file = unfinished / "images" / f"{image}.{request['format']}"
        if "reason" in record or file.exists():
            records[image] = record
    for image in _stale(table, collections, records):
        del records[image]
    left = table[~table["image"].isin(records)]

    how = [request[name] for name in ("size", "crop", "contrast", "format")]
    futures = []
    with nullcontext(executor) if executor else _default_pool(len(left)) as pool:
        try:
            for row in left.itertuples():
                job = (row.image, row.path, row.mask_file, unfinished, *how)
                futures.append(pool.submit(retina.prepare_photograph, *job))
            done = as_completed(futures)
            for future in tqdm(done, "preparing", len(futures), disable=None, unit="photo"):
                record = future.result()
                journal.add(record)
                records[record["image"]] = record
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(
                    errno.ENOSPC,
                    f"The disk of {unfinished} is full. Free some space and run again: it goes on "
                    "where it was",
                ) from error
            places = _folders(collections)
            failure = OSError(
                f"{error.filename or places}: {error.strerror or error}. No photograph is rejected "
                "for that. Run again when the disk or the network answers: it goes on where it "
                f"was; what stays unreadable, take out of {places}."
            )
            failure.errno = error.errno
            raise failure from error
        except BrokenExecutor as error:
            raise RuntimeError(
                f"{retina.BROKEN}: it goes on where it was. If that does not help, give an "
                "executor of fewer processes."
            ) from error
        finally:
            for future in futures:
                future.cancel()
    return records


def _default_pool(photographs: int) -> Executor:
    """A process a core, but none that has fewer than a hundred photographs to prepare."""
    workers = min(os.cpu_count(), photographs // 100)
    return retina.worker_pool(workers) if workers > 1 else ThreadPoolExecutor(1)


def _finish(
    unfinished: Path,
    sources: Sequence[str],
    table: pd.DataFrame,
    records: dict,
    rejects: dict,
    request: dict,
) -> None:
    """Write manifest.csv, rejects.csv and dataset.json; remove what is not of the data set."""
    rows = [records[image] for image in table["image"]]
    manifest = table.merge(pd.DataFrame(rows, columns=_RECORD), on="image")
    bad = manifest["reason"].notna()
    rejects = rejects | dict(zip(manifest["image"][bad], manifest["reason"][bad], strict=True))
    manifest, duplicates = reject_duplicates(manifest[~bad])
    rejects |= duplicates
    splits = []
    for source in sources:
        rows = manifest[manifest["source"] == source]
        if rows.empty:
            begins = prefix(source) if len(sources) > 1 else ""
            of_it = [name for name in rejects if name.startswith(begins)]
            image = min(of_it, default="")
            reason = rejects.get(image, f"there is none of the {request['eye']} eye")
            raise ValueError(
                f"Nothing of {source} can be prepared: {image} {reason}. Check photographs and "
                "labels."
            )
        splits.append(draw_split(rows, request["test_share"], request["seed"]))
    manifest["split"] = pd.concat(splits)
    manifest[_BOX] = manifest["box"].tolist()
    manifest = manifest.astype({"width": int, "height": int})
    text = manifest[_COLUMNS].to_csv(index=False).encode()
    (unfinished / "manifest.csv").write_bytes(text)
    rejected = pd.DataFrame(sorted(rejects.items()), columns=["image", "reason"])
    rejected.to_csv(unfinished / "rejects.csv", index=False)

    training = manifest[manifest["split"] == "train"]
    pixels = 255 * len(training) * request["size"] ** 2
    mean = np.sum(training["sums"].tolist(), axis=0) / pixels
    square = np.sum(training["squares"].tolist(), axis=0) / pixels / 255
    counts = pd.crosstab(manifest["split"], manifest["grade"])
    about = request | {
        "counts": json.loads(counts.to_json(orient="index")),
        "rejected": len(rejects),
        "duplicates": len(duplicates),
        "mean": mean.tolist(),
        "std": np.sqrt(square - mean**2).tolist(),
        "versions": {name: version(name) for name in ("pillow", "numpy", "scipy")},
        "manifest": hashlib.sha256(text).hexdigest(),
    }
    if len(sources) > 1:
        about["counts_by_source"] = {}
        for source, rows in manifest.groupby("source"):
            counts = pd.crosstab(rows["split"], rows["grade"])
            about["counts_by_source"][source] = json.loads(counts.to_json(orient="index"))
    (unfinished / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    belongs = {f"images/{image}.{request['format']}" for image in manifest["image"]}
    belongs |= {f"masks/{image}.png" for image in manifest["image"][manifest["mask"].notna()]}
    for file in unfinished.glob("*/*"):
        if file.relative_to(unfinished).as_posix() not in belongs:
            file.unlink()
    for rest in [unfinished / "journal.jsonl", *unfinished.glob("*.part")]:
        rest.unlink(missing_ok=True)


def _about(folder: Path) -> dict:
    """What dataset.json says; ValueError where it cannot be so, FileNotFoundError without it."""
    path = folder / "dataset.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} is no prepared data set. {MADE_BY} makes it: run that first."
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        mean, deviation = np.array(about["mean"], float), np.array(about["std"], float)
        sound = (
            mean.shape == deviation.shape == (3,)
            and np.isfinite(mean).all()
            and 0 < deviation.min() <= deviation.max() < math.inf
            and type(about["size"]) is int
            and type(about["counts"]) is dict
            and about["contrast"] in _CONTRASTS
            and about["format"] in retina.IMAGE_FORMATS
            and set(PREPARATION) <= set(about)
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(_damaged(folder, path, error)) from error
    if not sound:
        raise ValueError(_damaged(folder, path, "a value that cannot be, or one missing"))
    return about


def _read_manifest(folder: Path, about: dict) -> pd.DataFrame:
    """The table manifest.csv as it was written; ValueError where it is another."""
    path = folder / "manifest.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. Delete {folder} and run {MADE_BY} again.")
    text = path.read_bytes()
    if b",split," not in text.partition(b"\n")[0]:
        raise ValueError(
            f"{path} is of an earlier version, or was edited: it has no column split. Delete it and"
            f" run {MADE_BY} again."
        )
    if hashlib.sha256(text).hexdigest() != about.get("manifest"):
        raise ValueError(_damaged(folder, path, "it is not as it was written"))
    return pd.read_csv(BytesIO(text), dtype={"image": str}, keep_default_na=False)


def _damaged(folder: Path, path: Path, what: object) -> str:
    return (
        f"{path} is damaged or was edited ({what}). Move {folder} away, or delete it, and run "
        f"{MADE_BY} again."
    )


def without_rim(images: torch.Tensor, rim: float) -> torch.Tensor:
    """Normalised photographs with what lies beyond `rim` of the radius set to the mean, 0.

    The rim of the retina is the camera's: what it looks like says which camera it was.

    Args:
        images: (..., 3, H, W) float32, as `normalise` gives them.
        rim: a share of the radius; 1 leaves the photographs as they are.

    Returns:
        (..., 3, H, W) float32.
    """
    if rim == 1:
        return images
    inside = torch.from_numpy(retina.inner_disc(images.shape[-1], rim))
    return images * inside.to(images.device)


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Channel-wise normalisation, (x / 255 - mean) / std.

    Args:
        images: (..., 3, H, W) uint8.
        mean: (3, 1, 1) float32, of images in [0, 1].
        std: (3, 1, 1) float32.

    Returns:
        (..., 3, H, W) float32.
    """
    return (images.float() / 255 - mean) / std


class FundusDataset(torch.utils.data.Dataset):
    """One split of a prepared data set; item i is (image (3, H, W) float32 normalised, grade int).

    Attributes:
        grades: (N,) int64.
        names: of the photographs.
        sources: the collection of each.
        eyes: "left", "right", or "" where nobody says.
        boxes: of each retina, [left, top, right, bottom] in its photograph's pixels.
        mean: (3, 1, 1) float32, of the training split.
        std: (3, 1, 1) float32, of the training split.
        images: (N, 3, H, W) uint8, held in memory up to 2 GiB; else None, and each item is read
            when it is asked for.
        about: what dataset.json says.
        preparation: of that, what a network that learnt from it must know (`PREPARATION`).
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        flips: bool = False,
        turns: bool = False,
        shift: int = 0,
        rotations: bool = False,
        rim: float = 1.0,
        at_most: int = 0,
    ) -> None:
        """Read a split's manifest and, if they fit in memory, its photographs.

        What is done to an item is drawn from torch's global generator.

        Args:
            folder: that `prepare` made.
            split: "train", "val", "test", or "lesions" where there is one.
            flips: mirror left to right, and upside down, each with probability 1/2.
            turns: exchange rows and columns with probability 1/2.
            shift: move by up to so many pixels, the rim repeated.
            rotations: rotate by any angle, scale by 0.9 to 1.12, and change each channel's gain by
                a fifth at most and its level by a fifth of its deviation; what comes into the
                frame is the mean.
            rim: the share of the radius beyond which all is the mean (`without_rim`).
            at_most: keep so many photographs, drawn once and for all; 0 keeps all.

        Raises:
            ValueError: the split is unknown; `rim` or `at_most` cannot be; a file of the data set
                is damaged or was edited.
            FileNotFoundError: the data set or one of its photographs is missing.
        """
        self.folder = Path(folder)
        self.flips = flips
        self.turns = turns
        self.shift = shift
        self.rim = rim
        self.rotations = None
        if rotations:
            self.rotations = v2.RandomAffine(
                180, scale=(0.9, 1.12), interpolation=v2.InterpolationMode.BILINEAR, fill=None
            )
        if not 0 < rim <= 1:
            raise ValueError(f"rim is {rim}; choose a share of the radius above 0, at most 1.")
        if at_most < 0:
            raise ValueError(f"at_most is {at_most}; give a number of photographs, or 0 for all.")
        self.about = _about(self.folder)
        self.preparation = {name: self.about[name] for name in PREPARATION}
        if split not in self.about["counts"]:
            known = ", ".join(self.about["counts"])
            raise ValueError(f"split is {split!r}; {self.folder.name} has {known}.")
        self.mean = torch.tensor(self.about["mean"]).view(3, 1, 1)
        self.std = torch.tensor(self.about["std"]).view(3, 1, 1)
        manifest = _read_manifest(self.folder, self.about)
        manifest = manifest[manifest["split"] == split]
        if 0 < at_most < len(manifest):
            manifest = manifest.sample(at_most, random_state=0).sort_index()
        self.boxes = manifest[_BOX].to_numpy().tolist()
        self.sources = manifest["source"].tolist()
        self.eyes = manifest["eye"].tolist()
        self.names = manifest["image"].tolist()
        self.grades = torch.tensor(manifest["grade"].to_numpy())
        file_format = self.about["format"]
        self._files = [self._path(f"images/{name}.{file_format}") for name in self.names]
        self.images = None
        if 3 * self.about["size"] ** 2 * len(self) <= IN_MEMORY:
            self.images = torch.stack([self._read(i) for i in range(len(self))])

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing. Delete {self.folder} and run {MADE_BY} again."
            )
        return path

    def _read(self, i: int) -> torch.Tensor:
        """Photograph i, uint8 (3, H, W)."""
        side = self.about["size"]
        try:
            with Image.open(self._files[i], formats=_WRITTEN) as file:
                pixels = np.array(file).reshape(side, side, 3)
        except OSError as error:
            if error.errno:  # the file cannot be read
                raise
            raise ValueError(_damaged(self.folder, self._files[i], error)) from error
        except Exception as error:  # Pillow lets through whatever damaged bytes lead to
            raise ValueError(_damaged(self.folder, self._files[i], error)) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __len__(self) -> int:
        """How many photographs the split has."""
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Photograph i, normalised and augmented, and its grade."""
        image = self._read(i) if self.images is None else self.images[i]
        image = normalise(image, self.mean, self.std)
        if self.rotations:
            gain, level = 0.4 * torch.rand(2, 3, 1, 1) - 0.2
            image = image * (1 + gain) + level
        image = without_rim(image, self.rim)
        if self.flips:
            image = image.flip([axis for axis in (1, 2) if torch.rand(()) < 0.5])
        if self.turns and torch.rand(()) < 0.5:
            image = image.transpose(1, 2)
        if self.shift:
            padded = functional.pad(image[None], [self.shift] * 4, mode="replicate")[0]
            top, left = torch.randint(2 * self.shift + 1, (2,))
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        if self.rotations:
            image = self.rotations(image)
        return image, int(self.grades[i])

    def photograph(self, i: int) -> np.ndarray:
        """Photograph i to look at, (H, W, 3) float32 in [0, 1]."""
        return self._read(i).permute(1, 2, 0).numpy().astype(np.float32) / 255

    def masks(self, i: int) -> dict[str, np.ndarray]:
        """Where the lesions and the optic disc of photograph i are.

        Returns:
            bool (H, W) by name, for each of `lib.data.retina.MASKS`.

        Raises:
            FileNotFoundError: the data set has no masks, or the photograph has none.
        """
        if not any((self.folder / "masks").glob("*.png")):
            raise FileNotFoundError(
                f"{self.folder} has no masks: of its photographs nobody has outlined the lesions."
            )
        path = self.folder / "masks" / f"{self.names[i]}.png"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: nobody has outlined the lesions of this photograph. Where its "
                f"collection has them, delete {self.folder} and run {MADE_BY} again."
            )
        return retina.read_masks(path)

    def retina(self, i: int) -> np.ndarray:
        """Where a response to photograph i can count: on its retina.

        Returns:
            bool (H, W), within `rim`; for contrast "graham", which leaves no dark background, what
            the camera kept of the disc that `retina.graham` leaves.
        """
        size = self.about["size"]
        rim = retina.inner_disc(size, self.rim) if self.rim < 1 else np.ones((size, size), bool)
        if self.about["contrast"] == "none":
            return rim & retina.retina_mask(self._read(i).permute(1, 2, 0).numpy())
        x, y, width, height = retina.placement(self.boxes[i], size)
        kept = np.zeros((size, size), bool)
        kept[y : y + height, x : x + width] = True
        return rim & kept & retina.inner_disc(size, retina.GRAHAM_SHARE)


def require_same_preparation(config: dict, dataset: FundusDataset) -> None:
    """Refuse a sequencer whose photographs were prepared otherwise than those of a data set.

    The collection, size, cropping, contrast and normalisation must be the same; so, by the training
    split's mean, is the split, and nothing that is scored has been learnt from. `config` is the
    config.json of the sequencer's run; where it names no `rim`, the photographs had theirs whole.

    Raises:
        ValueError: names what differs.
    """
    differing = _differing(config, dataset.about)
    rim = config.get("rim", 1.0)
    if rim != dataset.rim:
        differing.append(f"rim {rim!r} there, {dataset.rim!r} here")
    if differing:
        raise ValueError(
            f"the sequencer learnt from {config.get('prepared')!r}, prepared otherwise: "
            f"{'; '.join(differing)}. Run notebook 04_radiomic_sequencer with the data set that is "
            "there now, or choose another"
        )


def require_held_back(config: dict, earlier: str | Path, now: str | Path) -> None:
    """Refuse to go on from a sequencer that has learnt from what a data set holds back.

    Photographs are known by the SHA-256 of their files, for their names depend on the collections.
    Where the sequencer itself comes from others (`checkpoint.earlier_runs`), they have to be asked
    about as well.

    Args:
        config: the config.json of the sequencer's run.
        earlier: the prepared data set that it learnt from.
        now: that which is to be learnt from; what its training split lacks is held back.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: `earlier` is not as it was; photographs were learnt from that are held back.
    """
    sets = []
    for folder in (Path(earlier), Path(now)):
        about = _about(folder)
        sets.append((about, _read_manifest(folder, about)))
    (about, learnt), (_, here) = sets
    differing = _differing(config, about)
    if differing:
        raise ValueError(
            f"{earlier} is not what the sequencer learnt from: {'; '.join(differing)}. Run "
            f"{MADE_BY} with that sequencer's parameters again"
        )
    learnt = learnt["sha256"][learnt["split"] == "train"]
    both = here["image"][(here["split"] != "train") & here["sha256"].isin(learnt)].tolist()
    if both:
        raise ValueError(
            f"the sequencer has learnt from {len(both)} photographs that {Path(now).name} holds "
            f"back, among them {both[0]}: prepare both with the same seed, or start from another"
        )


def _differing(config: dict, about: dict) -> list[str]:
    """In words, what of the preparation a sequencer's config.json has otherwise than a data set."""
    differing = []
    for name in PREPARATION:
        there, here = config.get(name), about[name]
        if there != here:
            differing.append(f"{name} {there!r} there, {here!r} here")
    return differing
