"""From raw fundus photographs to a prepared data set: selective cropping, one size, three parts (CLEAR-DR).

`prepare` reads a collection as Kaggle ships EyePACS (`lib.data.manifest`) and writes a folder that `Prepared` hands to the
training:

    images/<name>.webp  size x size RGB, the retina from edge to edge, black where the camera cut it
    masks/<name>.png    lesions in the same geometry, bit i set where phantom.MASKS[i] is (where raw has masks)
    manifest.csv        image, patient, eye, grade, part, left, top, right, bottom, width, height, sha256, source
    rejects.csv         image, reason: every photograph or label of the chosen eye that is not in the manifest
    dataset.json        the request, the counts, the training part's channel means and deviations, versions
"""

import errno
import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from lib import paths
from lib.data.collection import read_masks
from lib.data.manifest import EYES, MAKER, fingerprint, read_labels, reject_duplicates, split
from lib.data.retina import FORMATS, pool_of, prepare_photograph

COLUMNS = "image patient eye grade part left top right bottom width height sha256 source".split()
RECORD = "image sha256 reason box width height sums squares".split()
IN_MEMORY = 2 << 30  # bytes of a part up to which it is read at once


@contextmanager
def _alone(out):
    """Hold the lock of `out`, which ends with the process; raises RuntimeError where another run holds it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}.lock")
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Another run is preparing {out}: wait until it has ended, then run again."
            ) from None
        try:
            yield
        finally:
            path.unlink()


def _journal(partial):
    """What an interrupted run has already prepared, {image: record}; a line that was cut off is left out."""
    records = {}
    if (partial / "journal.jsonl").exists():
        for line in (partial / "journal.jsonl").read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            records[record["image"]] = record
    return records


def _prepare_all(jobs, executor, partial):
    """Run `prepare_photograph` on every job by any number of processes; each result is kept in the journal at once."""
    records, futures = [], []
    try:
        for job in jobs:
            futures.append(executor.submit(prepare_photograph, *job))
        with open(partial / "journal.jsonl", "a") as journal:
            journal.write("\n")  # ends a line that was cut off
            for future in tqdm(
                as_completed(futures),
                total=len(futures),
                desc="preparing",
                disable=None,
                unit="photo",
            ):
                records.append(future.result())
                journal.write(json.dumps(records[-1]) + "\n")
                journal.flush()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"The disk of {partial} is full. Free some space and run again: it goes on "
                          "where it was") from error  # fmt: skip
        raise
    finally:
        for future in futures:
            future.cancel()
    return records


def prepare(
    raw,
    out,
    size,
    eye="right",
    test_share=0.1,
    seed=0,
    crop=True,
    contrast="none",
    format="webp",
    executor=None,
):
    """Crop, resize and split the photographs of `raw` into the data set `out`; returns `out` as a Path.

    raw       a collection, see `lib.data.manifest.read_labels`
    size      side of a prepared photograph in pixels; `crop=False` takes whole frames, for photographs cropped already
    eye       "right" (as CLEAR-DR), "left" or "both"
    contrast  "none", or "graham" to take off the local average (`lib.data.retina.graham`)
    format    "webp", lossless, or "jpeg" of quality 95, a third of the size
    executor  any concurrent.futures.Executor, such as Dask's Client(...).get_executor() whose workers see the same
              files; by default a process a core. A script calls this below `if __name__ == "__main__"`

    The result does not depend on the number of workers. A run that was interrupted, whatever the moment, goes on where
    it was and gives the same bytes. The data set gets its name only when it is whole; one that the same request
    made is used again, one that another request made is kept beside as `<out>.1`, `.2`, ... A bad photograph goes to
    rejects.csv; raises ValueError, FileNotFoundError or FileExistsError for a bad request or collection, RuntimeError
    where another run is preparing `out`, OSError where the disk is full.
    """
    raw, out = Path(raw), Path(out).absolute()
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}; choose a side of 16 to 2048 pixels.")
    if not 0.01 <= test_share <= 0.5:
        raise ValueError(
            f"test_share is {test_share}; choose a share of 0.01 to 0.5 (CLEAR-DR: 0.1)."
        )
    for name, value, known in (
        ("eye", eye, EYES),
        ("contrast", contrast, ("none", "graham")),
        ("format", format, FORMATS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
    request = {
        "source": raw.name,
        "fingerprint": fingerprint(raw),
        "size": size,
        "eye": eye,
        "test_share": test_share,
    }
    request |= {"seed": seed, "crop": crop, "contrast": contrast, "format": format}
    made = out / "dataset.json"
    if made.exists() and request.items() <= json.loads(made.read_text()).items():
        return out
    if out.exists() and not made.exists():
        raise FileExistsError(
            f"{out} exists and is no prepared data set. Move it away or choose another folder."
        )

    with _alone(out):
        table, rejects = read_labels(raw, eye)
        digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:8]
        partial = out.with_name(f"{out.name}.{digest}.partial")
        for folder in ("images", "masks"):
            (partial / folder).mkdir(parents=True, exist_ok=True)
        done = {name: record for name, record in _journal(partial).items()
                if "reason" in record or (partial / "images" / f"{name}.{format}").exists()}  # fmt: skip
        jobs = []
        for row in table[~table["image"].isin(done)].itertuples():
            mask = raw / "masks" / f"{row.image}.png"
            jobs.append(
                (
                    row.image,
                    row.path,
                    mask if mask.exists() else None,
                    partial,
                    size,
                    crop,
                    contrast,
                    format,
                )
            )
        workers = min(os.cpu_count(), len(jobs) // 100)
        pool = executor or (pool_of(workers) if workers > 1 else ThreadPoolExecutor(1))
        try:
            new = _prepare_all(jobs, pool, partial)
        finally:
            if pool is not executor:
                pool.shutdown(cancel_futures=True)
        _finish(
            partial, table, rejects, done | {record["image"]: record for record in new}, request
        )
        if out.exists():
            print(f"{out.name} held a data set of another request, kept as {paths.aside(out).name}")
        os.replace(partial, out)
    return out


def _finish(partial, table, rejects, records, request):
    """Write manifest.csv, rejects.csv and dataset.json, and take away what does not belong to the data set."""
    records = pd.DataFrame([records[image] for image in table["image"]], columns=RECORD).set_index(
        "image"
    )
    bad = records["reason"].dropna()
    rejects = rejects | bad.to_dict()
    manifest = table[~table["image"].isin(bad.index)].join(records, on="image")
    manifest, duplicates = reject_duplicates(manifest)
    rejects |= duplicates
    if manifest.empty:
        image, reason = next(
            iter(sorted(rejects.items())), ("", f"there is none of the {request['eye']} eye")
        )
        raise ValueError(
            f"Nothing of {request['source']} can be prepared: {image} {reason}. Check photographs and labels."
        )
    manifest["part"] = split(manifest, request["test_share"], request["seed"])
    box = pd.DataFrame(manifest["box"].tolist(), columns=["left", "top", "right", "bottom"])
    manifest = (
        pd.concat([manifest, box], axis=1)
        .assign(source=request["source"])
        .astype({"width": int, "height": int})
    )
    manifest[COLUMNS].to_csv(partial / "manifest.csv", index=False)
    pd.DataFrame(sorted(rejects.items()), columns=["image", "reason"]).to_csv(
        partial / "rejects.csv", index=False
    )

    training = manifest[manifest["part"] == "train"]
    pixels = 255 * len(training) * request["size"] ** 2
    mean, square = (
        np.array(training[name].tolist()).sum(axis=0) / pixels for name in ("sums", "squares")
    )
    counts = json.loads(pd.crosstab(manifest["part"], manifest["grade"]).to_json(orient="index"))
    versions = {name: version(name) for name in ("pillow", "numpy", "scipy")}
    made = request | {"counts": counts, "rejected": len(rejects), "duplicates": len(duplicates)}
    made |= {
        "mean": mean.tolist(),
        "std": np.sqrt(square / 255 - mean**2).tolist(),
        "versions": versions,
    }
    (partial / "dataset.json").write_text(json.dumps(made, indent=1) + "\n")
    for image in duplicates:
        (partial / "images" / f"{image}.{request['format']}").unlink(missing_ok=True)
        (partial / "masks" / f"{image}.png").unlink(missing_ok=True)
    for rest in [partial / "journal.jsonl", *partial.rglob("*.part")]:
        rest.unlink(missing_ok=True)


def normalised(images, mean, std):
    """Channel-wise normalisation, uint8 (..., 3, H, W) to float32: (x / 255 - mean) / std, both (3, 1, 1)."""
    return (images.float() / 255 - mean) / std


class Prepared(torch.utils.data.Dataset):
    """One part ("train", "val", "test", and "lesions" where there is one) of a prepared data set.

    Item i is (image float32 (3, H, W), normalised; grade int). Drawn from torch's global generator: `flips` mirrors
    left to right and upside down, `turns` also exchanges rows and columns, each with probability 1/2; `shift` moves by
    up to so many pixels, the rim repeated. Attributes: `grades` int64 (N,), `names`, `mean` and `std` float32
    (3, 1, 1) of the training part, and `images` uint8 (N, 3, H, W): held in memory up to 2 GiB, else None, and each
    item is read when it is asked for. Raises ValueError for an unknown part, FileNotFoundError for a missing data set
    or photograph.
    """

    def __init__(self, folder, part, flips=False, turns=False, shift=0):
        self.folder, self.flips, self.turns, self.shift = Path(folder), flips, turns, shift
        if not (self.folder / "dataset.json").exists():
            raise FileNotFoundError(
                f"{self.folder} is no prepared data set. {MAKER} makes it: run that first."
            )
        made = json.loads((self.folder / "dataset.json").read_text())
        if part not in made["counts"]:
            raise ValueError(
                f"part is {part!r}; {self.folder.name} has {', '.join(made['counts'])}."
            )
        self.mean, self.std = (torch.tensor(made[name]).view(3, 1, 1) for name in ("mean", "std"))
        manifest = pd.read_csv(self.folder / "manifest.csv", dtype={"image": str}).query(
            "part == @part"
        )
        self.names, self.format = manifest["image"].tolist(), made["format"]
        self.grades = torch.tensor(manifest["grade"].to_numpy())
        for name in self.names:
            self._path(f"images/{name}.{self.format}")
        in_memory = 3 * made["size"] ** 2 * len(self.names) <= IN_MEMORY
        self.images = (
            torch.stack([self._read(i) for i in range(len(self.names))]) if in_memory else None
        )

    def _path(self, name):
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing. Delete {self.folder} and run {MAKER} again."
            )
        return path

    def _read(self, i):
        with Image.open(self.folder / f"images/{self.names[i]}.{self.format}") as file:
            return torch.from_numpy(np.array(file)).permute(2, 0, 1).contiguous()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        image = self.normalise(self._read(i) if self.images is None else self.images[i])
        if self.flips:
            image = image.flip([axis for axis in (1, 2) if torch.rand(()) < 0.5])
        if self.turns and torch.rand(()) < 0.5:
            image = image.transpose(1, 2)
        if self.shift:
            padded = functional.pad(image[None], [self.shift] * 4, mode="replicate")[0]
            top, left = torch.randint(2 * self.shift + 1, (2,))
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        return image, int(self.grades[i])

    def normalise(self, images):
        """`normalised` by the training part's mean and std."""
        return normalised(images, self.mean, self.std)

    def photograph(self, i):
        """Photograph i to look at, float32 (H, W, 3) in [0, 1]."""
        return self._read(i).permute(1, 2, 0).numpy().astype(np.float32) / 255

    def masks(self, i):
        """Where the lesions of photograph i are, {lesion: bool (H, W)}. Raises FileNotFoundError without masks."""
        return read_masks(self._path(f"masks/{self.names[i]}.png"))
