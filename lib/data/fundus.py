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
"""

import errno
import hashlib
import json
import os
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from lib import paths
from lib.data import retina
from lib.data.manifest import (
    EYE_CHOICES,
    MADE_BY,
    draw_split,
    fingerprint,
    read_labels,
    reject_duplicates,
)

_CONTRASTS = ("none", "graham")
_BOX = ["left", "top", "right", "bottom"]
_COLUMNS = [*"image patient eye grade split".split(), *_BOX, *"width height sha256 source".split()]
_RECORD = "image sha256 reason box width height sums squares".split()
PREPARATION = ("fingerprint", "size", "crop", "contrast", "mean", "std")
IN_MEMORY = 2 << 30  # bytes of a split up to which it is read at once


def prepare(
    raw: str | Path,
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
    """Crop, resize and split the photographs of `raw` into the data set `out`.

    The result does not depend on the number of workers. A run that was interrupted, whatever the
    moment, goes on where it was and gives the same bytes. The data set gets its name only when it
    is whole; one that the same request made is used again, one that another request made is kept
    beside as `<out>.1`, `.2`, ... A bad photograph goes to rejects.csv.

    Args:
        raw: a collection, see `lib.data.manifest.read_labels`.
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
        ValueError: a bad request or collection.
        FileNotFoundError: the collection lacks labels or photographs.
        FileExistsError: `out` is something else.
        RuntimeError: another run is preparing `out`.
        OSError: the disk is full.
    """
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}; choose a side of 16 to 2048 pixels.")
    if not 0.01 <= test_share <= 0.5:
        raise ValueError(
            f"test_share is {test_share}; choose a share of 0.01 to 0.5 (CLEAR-DR: 0.1)."
        )
    for name, value, known in (
        ("eye", eye, EYE_CHOICES),
        ("contrast", contrast, _CONTRASTS),
        ("file_format", file_format, retina.IMAGE_FORMATS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")

    raw, out = Path(raw), Path(out).absolute()
    request = {
        "source": raw.name,
        "fingerprint": fingerprint(raw),
        "size": size,
        "eye": eye,
        "test_share": test_share,
        "seed": seed,
        "crop": crop,
        "contrast": contrast,
        "format": file_format,
    }
    about = out / "dataset.json"
    if about.exists() and request.items() <= json.loads(about.read_text()).items():
        return out
    if out.exists() and not about.exists():
        raise FileExistsError(
            f"{out} exists and is no prepared data set. Move it away or choose another folder."
        )

    with paths.alone(out, "preparing"):
        table, rejects = read_labels(raw, eye)
        digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:8]
        unfinished = out.with_name(f"{out.name}.{digest}.partial")
        records = _prepare_photographs(table, raw / "masks", unfinished, request, executor)
        _finish(unfinished, table, records, rejects, request)
        if out.exists():
            kept = paths.aside(out)
            print(f"{out.name} held a data set of another request, kept as {kept.name}")
        os.replace(unfinished, out)
    return out


def _prepare_photographs(
    table: pd.DataFrame, masks: Path, unfinished: Path, request: dict, executor: Executor | None
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
    left = table[~table["image"].isin(records)]

    how = [request[name] for name in ("size", "crop", "contrast", "format")]
    futures = []
    with nullcontext(executor) if executor else _default_pool(len(left)) as pool:
        try:
            for row in left.itertuples():
                mask = masks / f"{row.image}.png"
                job = (row.image, row.path, mask if mask.exists() else None, unfinished, *how)
                futures.append(pool.submit(retina.prepare_photograph, *job))
            done = as_completed(futures)
            for future in tqdm(done, "preparing", len(futures), disable=None, unit="photo"):
                record = future.result()
                journal.add(record)
                records[record["image"]] = record
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"The disk of {unfinished} is full. Free some space and run again: it goes on "
                "where it was",
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
    unfinished: Path, table: pd.DataFrame, records: dict, rejects: dict, request: dict
) -> None:
    """Write manifest.csv, rejects.csv and dataset.json; remove what is not of the data set."""
    rows = [records[image] for image in table["image"]]
    manifest = table.merge(pd.DataFrame(rows, columns=_RECORD), on="image")
    bad = manifest["reason"].notna()
    rejects = rejects | dict(zip(manifest["image"][bad], manifest["reason"][bad], strict=True))
    manifest, duplicates = reject_duplicates(manifest[~bad])
    rejects |= duplicates
    if manifest.empty:
        nobody = ("", f"there is none of the {request['eye']} eye")
        image, reason = min(rejects.items(), default=nobody)
        raise ValueError(
            f"Nothing of {request['source']} can be prepared: {image} {reason}. Check photographs "
            "and labels."
        )

    manifest["split"] = draw_split(manifest, request["test_share"], request["seed"])
    manifest[_BOX] = manifest["box"].tolist()
    manifest["source"] = request["source"]
    manifest = manifest.astype({"width": int, "height": int})
    manifest[_COLUMNS].to_csv(unfinished / "manifest.csv", index=False)
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
    }
    (unfinished / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")

    for image in duplicates:
        (unfinished / "images" / f"{image}.{request['format']}").unlink(missing_ok=True)
        (unfinished / "masks" / f"{image}.png").unlink(missing_ok=True)
    for rest in [unfinished / "journal.jsonl", *unfinished.rglob("*.part")]:
        rest.unlink(missing_ok=True)


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
    ) -> None:
        """Read a split's manifest and, if they fit in memory, its photographs.

        What is done to an item is drawn from torch's global generator.

        Args:
            folder: that `prepare` made.
            split: "train", "val", "test", or "lesions" where there is one.
            flips: mirror left to right, and upside down, each with probability 1/2.
            turns: exchange rows and columns with probability 1/2.
            shift: move by up to so many pixels, the rim repeated.

        Raises:
            ValueError: the split is unknown.
            FileNotFoundError: the data set or one of its photographs is missing.
        """
        self.folder = Path(folder)
        self.flips = flips
        self.turns = turns
        self.shift = shift
        if not (self.folder / "dataset.json").exists():
            raise FileNotFoundError(
                f"{self.folder} is no prepared data set. {MADE_BY} makes it: run that first."
            )
        self.about = json.loads((self.folder / "dataset.json").read_text())
        self.preparation = {name: self.about[name] for name in PREPARATION}
        if split not in self.about["counts"]:
            known = ", ".join(self.about["counts"])
            raise ValueError(f"split is {split!r}; {self.folder.name} has {known}.")
        self.mean = torch.tensor(self.about["mean"]).view(3, 1, 1)
        self.std = torch.tensor(self.about["std"]).view(3, 1, 1)
        manifest = pd.read_csv(self.folder / "manifest.csv", dtype={"image": str})
        if "split" not in manifest:
            raise ValueError(
                f"{self.folder} is of an earlier version: its manifest has no column split. "
                f"Delete it and run {MADE_BY} again."
            )
        manifest = manifest[manifest["split"] == split]
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
        with Image.open(self._files[i]) as file:
            return torch.from_numpy(np.array(file)).permute(2, 0, 1).contiguous()

    def __len__(self) -> int:
        """How many photographs the split has."""
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Photograph i, normalised and augmented, and its grade."""
        image = self._read(i) if self.images is None else self.images[i]
        image = normalise(image, self.mean, self.std)
        if self.flips:
            image = image.flip([axis for axis in (1, 2) if torch.rand(()) < 0.5])
        if self.turns and torch.rand(()) < 0.5:
            image = image.transpose(1, 2)
        if self.shift:
            padded = functional.pad(image[None], [self.shift] * 4, mode="replicate")[0]
            top, left = torch.randint(2 * self.shift + 1, (2,))
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        return image, int(self.grades[i])

    def photograph(self, i: int) -> np.ndarray:
        """Photograph i to look at, (H, W, 3) float32 in [0, 1]."""
        return self._read(i).permute(1, 2, 0).numpy().astype(np.float32) / 255

    def masks(self, i: int) -> dict[str, np.ndarray]:
        """Where the lesions and the optic disc of photograph i are.

        Returns:
            bool (H, W) by name, for each of `lib.data.retina.MASKS`.

        Raises:
            FileNotFoundError: the data set has no masks.
        """
        if not any((self.folder / "masks").glob("*.png")):
            raise FileNotFoundError(
                f"{self.folder} has no masks: of its photographs nobody has outlined the lesions."
            )
        return retina.read_masks(self._path(f"masks/{self.names[i]}.png"))

    def retina(self, i: int) -> np.ndarray:
        """Where a response to photograph i can count: on its retina.

        Returns:
            bool (H, W); for contrast "graham", which leaves no dark background, `graham_disc`.
        """
        if self.about["contrast"] == "graham":
            return retina.graham_disc(self.about["size"])
        return retina.retina_mask(self._read(i).permute(1, 2, 0).numpy())


def require_same_preparation(config: dict, dataset: FundusDataset) -> None:
    """Refuse a sequencer whose photographs were prepared otherwise than those of a data set.

    The collection, size, cropping, contrast and normalisation must be the same; so, by the training
    split's mean, is the split, and nothing that is scored has been learnt from. `config` is the
    config.json of the sequencer's run.

    Raises:
        ValueError: names what differs.
    """
    differing = []
    for name, here in dataset.preparation.items():
        there = config.get(name)
        if there != here:
            differing.append(f"{name} {there!r} there, {here!r} here")
    if differing:
        raise ValueError(
            f"the sequencer learnt from {config.get('prepared')!r}, prepared otherwise: "
            f"{'; '.join(differing)}. Run notebook 04_radiomic_sequencer with the data set that is "
            "there now, or choose another"
        )
