"""The networks: all-convolutional ones that end as CLEAR wants it, and torchvision's on ImageNet.

The all-convolutional networks have one kernel for each class in the last layer, then global average
pooling.
"""

import socket
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from lib import paths

_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # ImageNet's red, green, blue
_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
RANDOM = "random"  # as `weights`: none, SqueezeNet starts at random
_SILENCE = 10  # seconds without an answer after which there is no network


class AllConvNet(nn.Module):
    """Convolution-ReLU-max-pool blocks, a 1x1 convolution to class maps, global average pooling.

    The scores are S_c = mean_{x,y} z_L^c(x, y), z_L the last convolution's maps, one a class. The
    other convolutions are 3x3 and keep the size; every block but the last halves it.

    The class kernels start at zero. Cross-entropy never sees what is added to all scores alike, so
    what a random start adds is never taken away, and CLEAR would show it as a response to what all
    images share.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 96),
        normalised: bool = False,
    ) -> None:
        """Build it with random weights.

        Args:
            classes: kernels of the last convolution.
            in_channels: of the images.
            channels: kernels of each block.
            normalised: whether batch normalisation follows each 3x3 convolution.
        """
        super().__init__()
        self.config = {"classes": classes, "in_channels": in_channels, "channels": list(channels)}
        layers = []
        for before, after in zip((in_channels, *channels), channels, strict=False):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm2d(after))
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Conv2d(channels[-1], classes, 1)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        _start_at_zero(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, classes) of images (B, in_channels, H, W)."""
        return self.head(self.features(images)).mean((2, 3))


class RadiomicSequencer(AllConvNet):
    """The deep radiomic sequencer of CLEAR-DR, for fundus photographs (B, 3, H, W).

    Scores are (B, 5), one for each grade of diabetic retinopathy. Because the last convolution is
    1x1, they are an affine function of the radiomic sequence: S = W s + b. Batch normalisation is
    not the paper's. Without it the network grades nearly as well, but from constants that it takes
    from what all photographs share, the rim above all, and CLEAR-DR then shows the rim.
    """

    def __init__(
        self,
        classes: int = 5,
        in_channels: int = 3,
        channels: Sequence[int] = (16, 32, 48, 64, 96),
    ) -> None:
        """Build it with random weights; the arguments are those of `AllConvNet`."""
        super().__init__(classes, in_channels, channels, normalised=True)

    def sequence(self, images: Tensor) -> Tensor:
        """The radiomic sequence: the activation before the last convolution, averaged over x, y.

        Args:
            images: (B, in_channels, H, W) float32.

        Returns:
            (B, channels[-1]).
        """
        return self.features(images).mean((2, 3))


class _Residual(nn.Module):
    """relu(x + F(x)), F two normalised 3x3 convolutions, a ReLU between (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.steps(x))


class ResidualSequencer(RadiomicSequencer):
    """The sequencer with a residual block after every convolution but the first: deeper."""

    def __init__(
        self,
        classes: int = 5,
        in_channels: int = 3,
        channels: Sequence[int] = (16, 32, 48, 64, 96),
    ) -> None:
        """Build it with random weights; the arguments are those of `AllConvNet`."""
        super().__init__(classes, in_channels, channels)
        layers = []
        block = 0
        for layer in self.features:
            layers.append(layer)
            if isinstance(layer, nn.ReLU):
                if block > 0:
                    layers.append(_Residual(channels[block]))
                block += 1
        self.features = nn.Sequential(*layers)


class PretrainedSequencer(RadiomicSequencer):
    """The first layers of SqueezeNet 1.1 and a 1x1 convolution with one kernel for each grade."""

    def __init__(self, classes: int = 5, layers: int = 13, dropout: float = 0.0) -> None:
        """Build it with random weights; `build_sequencer` puts ImageNet's in.

        Args:
            classes: kernels of the last convolution.
            layers: how many of SqueezeNet's, at most 13, the last a Fire module.
            dropout: of the features, in training: SqueezeNet has it before its last convolution.
        """
        nn.Module.__init__(self)
        self.config = {"classes": classes, "layers": layers}
        self.features = models.squeezenet1_1(weights=None).features[:layers]
        fire = self.features[-1]  # it ends in two convolutions, side by side
        if dropout:
            self.features.append(nn.Dropout(dropout))
        width = fire.expand1x1.out_channels + fire.expand3x3.out_channels
        self.head = nn.Conv2d(width, classes, 1)
        _start_at_zero(self.head)


def _start_at_zero(head: nn.Conv2d) -> None:
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)


SEQUENCERS = {
    "plain": RadiomicSequencer,
    "residual": ResidualSequencer,
    "squeezenet": PretrainedSequencer,
    "squeezenet-frozen": partial(PretrainedSequencer, layers=10),
}


def build_sequencer(
    body: str, mean: Tensor, std: Tensor, weights: str = "", dropout: float = 0.0
) -> tuple[nn.Module, str]:
    """A sequencer to train.

    SqueezeNet starts from ImageNet, whose photographs had another mean m and deviation s. Its first
    convolution pads nothing, so it takes the difference in exactly:
    w' = w std / s and b' = b + sum w (mean - m) / s.

    Args:
        body: "plain", "residual", "squeezenet" or "squeezenet-frozen".
        mean: (3, 1, 1) float32, what is taken off the photographs, in [0, 1].
        std: (3, 1, 1) float32, what they are divided by.
        weights: of SqueezeNet, as for `load_imagenet`, or `RANDOM`.
        dropout: of SqueezeNet's features, in training.

    Returns:
        The network, and in words where its weights came from.

    Raises:
        ValueError: another body, or a dropout that it has not; further as `load_imagenet`.
    """
    if body not in SEQUENCERS:
        raise ValueError(f"body is {body!r}; choose one of {', '.join(SEQUENCERS)}")
    if body == "squeezenet":
        network = PretrainedSequencer(dropout=dropout)
    elif dropout:
        raise ValueError(f"dropout is {dropout}, and {body} has none: set it to 0")
    else:
        network = SEQUENCERS[body]()
    if not isinstance(network, PretrainedSequencer) or weights == RANDOM:
        return network, "random weights"
    trained, origin = load_imagenet("squeezenet1_1", weights)
    layers = network.config["layers"]
    network.features.load_state_dict(trained.features[:layers].state_dict())
    first = network.features[0]
    with torch.no_grad():
        first.bias += (first.weight * ((mean - _MEAN) / _STD)).sum((1, 2, 3))
        first.weight *= std / _STD
    return network, origin


def with_gap(network: nn.Module, classes: int, kernels: int = 1024) -> nn.Sequential:
    """AlexNet-GAP and VGGnet-GAP (Zhou 2016, section 3), to be fine-tuned.

    The last pooling and the fully connected layers go; a 3x3 convolution, global average pooling
    and one linear layer come, at random. The other convolutions are the network's own, not copies.

    Args:
        network: torchvision's AlexNet or VGG.
        classes: scores of the new network.
        kernels: of the new convolution.

    Returns:
        The new network, scores (B, classes) from images (B, 3, H, W).

    Raises:
        ValueError: the network's `features` do not end in a max-pooling.
    """
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential) or not isinstance(features[-1], nn.MaxPool2d):
        raise ValueError(
            f"{type(network).__name__} is not built as AlexNet and VGG are: `features` that end in "
            "a max-pooling, then fully connected layers"
        )
    last = next(layer for layer in reversed(features) if isinstance(layer, nn.Conv2d))
    return nn.Sequential(
        *features[:-1],
        nn.Conv2d(last.out_channels, kernels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(kernels, classes),
    )


def load_imagenet(architecture: str, weights: str = "") -> tuple[nn.Module, str]:
    """One of torchvision's networks with ImageNet weights, in evaluation mode.

    Args:
        architecture: torchvision's name of a classification network.
        weights: the path of a state_dict (.safetensors, or as torch.save writes it). Where it is
            empty, imagenet/<architecture>.safetensors in the data sets' folder is taken, else
            torchvision's own download.

    Returns:
        The network, and in words where its weights came from.

    Raises:
        ValueError: an unknown architecture, weights that do not fit it, a damaged download.
        FileNotFoundError: the path is not there.
        ConnectionError: no weights are given or found, and the network is silent for 10 s.
    """
    if architecture not in models.list_models(module=models):
        raise ValueError(
            f"torchvision has no classification network {architecture!r}; "
            "try squeezenet1_1 or resnet18"
        )
    path = Path(weights or paths.dataset(f"imagenet/{architecture}.safetensors")).expanduser()
    if not path.exists():
        if not weights:
            return _download(architecture), "torchvision's download"
        raise FileNotFoundError(
            f"no weights at {path}; leave `weights` empty to have them searched for and downloaded"
        )
    options = {}
    if architecture in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "init_weights": False}
    network = models.get_model(architecture, weights=None, **options)
    return fill_from_file(network, path), path.name


def imagenet_input(photograph: np.ndarray, side: int = 224) -> Tensor:
    """A photograph as torchvision's ImageNet networks were trained to see it.

    Args:
        photograph: (H, W, 3) uint8.
        side: what the shorter side becomes, in pixels.

    Returns:
        (1, 3, h, w) float32, with ImageNet's mean taken off, divided by its deviation.

    Raises:
        ValueError: a grey, RGBA or 16-bit photograph.
    """
    photograph = np.asarray(photograph)
    if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8:
        raise ValueError(
            f"the photograph is {photograph.dtype} {photograph.shape}, not uint8 (H, W, 3): open "
            "it with Pillow and .convert('RGB')"
        )
    image = torch.tensor(photograph).permute(2, 0, 1)[None] / 255
    size = [round(side * length / min(image.shape[2:])) for length in image.shape[2:]]
    image = functional.interpolate(image, size, mode="bilinear", antialias=True)
    return (image - _MEAN) / _STD


def fill_from_file(network: nn.Module, path: str | Path) -> nn.Module:
    """Give `network` the weights of a state_dict on disk.

    Args:
        network: its weights are replaced.
        path: .safetensors, or as torch.save writes it.

    Returns:
        The network in evaluation mode.

    Raises:
        FileNotFoundError: the path is not there.
        ValueError: the file cannot be read or does not fit; the first names in the file and in the
            network are listed.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    state = {}
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:
        found = ", ".join(str(name) for name in list(state)[:3])
        expected = ", ".join(list(network.state_dict())[:3])
        raise ValueError(
            f"{path.name} does not fit {type(network).__name__} ({type(error).__name__}): it holds "
            f"{found or 'nothing readable'}, ... instead of {expected}, ..."
        ) from error
    return network.eval()


def _download(architecture: str) -> nn.Module:
    source = next(iter(models.get_model_weights(architecture)))
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(source.url).name
    if cached.exists():
        try:
            return models.get_model(architecture, weights=source).eval()
        except Exception as error:
            raise ValueError(
                f"{cached}, torchvision's download, cannot be used ({type(error).__name__}): it is "
                "damaged or was cut off. Delete it and run this notebook again"
            ) from error
    timeout = socket.getdefaulttimeout()
    try:
        _reach(source.url)
        socket.setdefaulttimeout(_SILENCE)
        return models.get_model(architecture, weights=source, progress=False).eval()
    except Exception as error:
        raise ConnectionError(
            f"no ImageNet weights for {architecture} on disk, {type(error).__name__} from the "
            f"network. To get them:\n1. download {source.url}\n"
            "2. put the file into checkpoints/ in the folder torch.hub.get_dir() names, often "
            "~/.cache/torch/hub\n"
            f"3. or give its path as `weights`, or save it as imagenet/{architecture}.safetensors "
            "where COMPANION_DATASETS points\n"
            "4. run this notebook again"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _reach(url: str) -> None:
    """Raise unless a server answers in time; in a thread, as looking up its name can hang."""
    answer = []

    def ask() -> None:
        try:
            urlopen(url, timeout=_SILENCE).close()
            answer.append(None)
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SILENCE)
    if not answer:
        raise TimeoutError(f"no answer for {_SILENCE} s")
    if answer[0] is not None:
        raise answer[0]
