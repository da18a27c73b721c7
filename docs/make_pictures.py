"""Draw the README's row of pictures into data/recorded/front/: CAM, CLEAR and CLEAR-DR.

    COMPANION_DATASETS=/path/to/datasets python docs/make_pictures.py

It needs SqueezeNet's ImageNet weights, MNIST and IDRiD (data/README.md says where they go). Each
picture is two by two tiles, without words, which would be too small to read in a row of three.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision import models

from lib import explain, paths
from lib.data import digits, retina
from lib.learning import networks, training
from lib.methods import cam, clear

TILE, GAP = 300, 8  # pixels
DIGITS = (4, 9)
# Of the photographs that experts outlined, the surest right answers of grades 2 and 3.
EYES = ("IDRiD_47", "IDRiD_53")


def square(image: np.ndarray) -> Image.Image:
    """A picture (H, W, 3), uint8 or in [0, 1], as a tile; small ones keep their pixels."""
    if image.dtype != np.uint8:
        image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    few = max(image.shape) < TILE / 2
    how = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize((TILE, TILE), how)


def save(name: str, tiles: list[np.ndarray]) -> None:
    """Four tiles, row by row, as one picture on white."""
    side = 2 * TILE + GAP
    sheet = Image.new("RGB", (side, side), "white")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, 2)
        sheet.paste(square(tile), (column * (TILE + GAP), row * (TILE + GAP)))
    folder = paths.make(paths.RECORDED / "front")
    write = partial(sheet.save, format="jpeg", quality=88, optimize=True)
    paths.write(folder / f"{name}.jpeg", write)


def class_activation_maps() -> list[np.ndarray]:
    """Two photographs, each beside the map of its likeliest class (notebook 1, 1.4)."""
    portrait = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    portrait = np.array(portrait.crop((0, 60, portrait.width, 60 + portrait.width)))
    temple = load_sample_images().images[0][:, 60:487]
    network, _ = networks.load_imagenet("squeezenet1_1")
    names = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"]
    shades = matplotlib.colormaps["inferno"]
    tiles = []
    for photograph in (portrait, temple):
        S, M = cam.class_activation_maps(network, networks.imagenet_input(photograph))
        c = S.argmax()
        print(names[c], f"{S.softmax(1).max():.2f}")
        share = cam.upsample(M[:, c, None], photograph.shape[:2])[0, 0].clamp(min=0)
        share = (share / share.max()).numpy()
        opacity = 0.8 * np.sqrt(share)[..., None]
        laid_over = (1 - opacity) * photograph / 255 + opacity * shades(share)[..., :3]
        tiles += [photograph, laid_over]
    return tiles


def clear_maps() -> list[np.ndarray]:
    """Two digits of MNIST that are answered right, each beside its CLEAR map (notebook 2, 2.5).

    The brightness is the root of the response, so that faint ones are seen.
    """
    images, labels = digits.load_digits_split("mnist", "train")
    network = networks.AllConvNet(channels=(32, 64, 128))
    kept = len(images) // 10
    with TemporaryDirectory() as folder:
        training.fit(
            network,
            TensorDataset(images[kept:], labels[kept:]),
            TensorDataset(images[:kept], labels[:kept]),
            Path(folder) / "run",
            epochs=1,
        )
    images, labels = digits.load_digits_split("mnist", "test")
    scores, R = clear.attentive_responses(network, images[:100])
    maps = clear.render(R.clamp(min=0).sqrt(), clear.DIGIT_HUES)
    right = scores.argmax(1) == labels[:100]
    tiles = []
    for digit in DIGITS:
        i = (right & (labels[:100] == digit)).nonzero()[0, 0]
        tiles += [images[i, 0, ..., None].expand(-1, -1, 3).numpy(), maps[i].numpy()]
    return tiles


def prepared(path: Path, config: dict) -> tuple[np.ndarray, Tensor]:
    """A photograph as it is, cropped, (H, W, 3), and as the sequencer takes it (1, 3, H, W)."""
    data = path.read_bytes()
    size = config["size"]
    shown, _, _ = retina.extract(data, path.name, size)
    image, _, _ = retina.extract(data, path.name, size, config["crop"], config["contrast"])
    return shown, explain.network_images(image[None], config)


def clear_dr_maps() -> list[np.ndarray]:
    """Two eyes of IDRiD, each beside its map laid over it (notebook 5, 5.3)."""
    network, config = explain.load_sequencer(paths.WEIGHTS / "retinas")
    tiles = []
    for name in EYES:
        (path,) = paths.dataset("idrid").rglob(f"segmentation/images/{name}.jpg")
        shown, image = prepared(path, config)
        (eye,) = explain.explain_images(network, image, loss=config["loss"])
        print(f"{name}: grade {eye.grade}, probability {eye.probabilities[eye.grade]:.2f}")
        tiles += [shown, explain.laid_over(eye.R, shown)]
    return tiles


if __name__ == "__main__":
    save("clear-dr", clear_dr_maps())
    save("cam", class_activation_maps())
    save("clear", clear_maps())
