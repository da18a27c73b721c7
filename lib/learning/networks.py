"""All-convolutional networks that end as CLEAR wants it, and torchvision's networks with their ImageNet weights.

The all-convolutional networks have one kernel for each class in the last layer, then global average pooling.
"""

import socket
import threading
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torchvision import models

from lib import paths

IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]  # means and deviations, red, green, blue
SILENCE = 10  # seconds without an answer after which there is no network


class AllConvNet(nn.Module):
    """Convolution-ReLU-max-pool blocks, a last 1x1 convolution with one kernel for each class, global average pooling.

    Takes images (B, in_channels, H, W), returns scores (B, classes): S_c = mean_{x,y} z_L^c(x, y). All convolutions
    but the last are 3x3 and keep the size, batch-normalised if `normalised`; every block but the last halves the size.
    `channels` are the blocks' kernels.

    The class kernels start at zero. Cross-entropy never sees what is added to all scores alike, so what a random start
    adds is never taken away, and CLEAR would show it as a response to what all images share.
    """

    def __init__(self, classes=10, in_channels=1, channels=(32, 64, 96), normalised=False):
        super().__init__()
        self.config = {"classes": classes, "in_channels": in_channels, "channels": list(channels)}
        layers = []
        for before, after in zip((in_channels, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=not normalised)]
            layers += [nn.BatchNorm2d(after)] if normalised else []
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Conv2d(channels[-1], classes, 1)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        return self.head(self.features(images)).mean((2, 3))


class RadiomicSequencer(AllConvNet):
    """The deep radiomic sequencer of CLEAR-DR: an all-convolutional network for fundus photographs (B, 3, H, W).

    Scores are (B, 5), one for each grade of diabetic retinopathy. Because the last convolution is 1x1, the scores are
    an affine function of the radiomic sequence: S = W s + b. Batch normalisation is not the paper's. Without it the
    network grades nearly as well, but from constants that it takes from what all photographs share, the rim above all,
    and CLEAR-DR then shows the rim.
    """

    def __init__(self, classes=5, in_channels=3, channels=(16, 32, 48, 64, 96)):
        super().__init__(classes, in_channels, channels, normalised=True)

    def sequence(self, images):
        """The radiomic sequence s (B, channels[-1]): the activation before the last convolution, averaged over x, y."""
        return self.features(images).mean((2, 3))


class _Residual(nn.Module):
    """x + F(x), F two batch-normalised 3x3 convolutions with a ReLU between them, then a ReLU (He et al. 2016)."""

    def __init__(self, channels):
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.steps = nn.Sequential(
            first, nn.BatchNorm2d(channels), nn.ReLU(), second, nn.BatchNorm2d(channels)
        )
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.steps(x))


class ResidualSequencer(RadiomicSequencer):
    """The sequencer with a residual block after every convolution but the first: deeper at the same resolution."""

    def __init__(self, classes=5, in_channels=3, channels=(16, 32, 48, 64, 96)):
        super().__init__(classes, in_channels, channels)
        layers, seen = [], 0
        for layer in self.features:
            layers.append(layer)
            if isinstance(layer, nn.ReLU) and (seen := seen + 1) > 1:
                layers.append(_Residual(channels[seen - 1]))
        self.features = nn.Sequential(*layers)


class PretrainedSequencer(RadiomicSequencer):
    """The first `layers` of SqueezeNet 1.1, at most 13, and a 1x1 convolution with one kernel for each grade.

    Made with random weights; `sequencer` puts ImageNet's in.
    """

    def __init__(self, classes=5, layers=13):
        nn.Module.__init__(self)
        self.config = {"classes": classes, "layers": layers}
        self.features = models.squeezenet1_1(weights=None).features[:layers]
        channels = [m.out_channels for m in self.features.modules() if isinstance(m, nn.Conv2d)][
            -2:
        ]
        self.head = nn.Conv2d(
            sum(channels), classes, 1
        )  # a Fire module ends in two convolutions, side by side
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


SEQUENCERS = {
    "plain": RadiomicSequencer,
    "residual": ResidualSequencer,
    "squeezenet": PretrainedSequencer,
    "squeezenet-frozen": lambda: PretrainedSequencer(layers=10),
}


def sequencer(body, mean, std, weights=""):
    """A sequencer to train: "plain", "residual", or SqueezeNet from ImageNet, "squeezenet", "squeezenet-frozen".

    mean, std (3, 1, 1)  what the photographs are normalised with. SqueezeNet learnt on others, m and s; its first
    convolution, which pads nothing, takes the difference in exactly: w' = w std / s, b' = b + sum w (mean - m) / s.
    weights  as for `imagenet`. Returns the network and in words where its weights came from. Raises ValueError for
    another body, and as `imagenet` does.
    """
    if body not in SEQUENCERS:
        raise ValueError(f"body is {body!r}; choose one of {', '.join(SEQUENCERS)}")
    network, origin = SEQUENCERS[body](), "random weights"
    if isinstance(network, PretrainedSequencer):
        trained, origin = imagenet("squeezenet1_1", weights)
        network.features.load_state_dict(trained.features[: len(network.features)].state_dict())
        m, s = torch.tensor(IMAGENET)[:, :, None, None]
        first = network.features[0]
        with torch.no_grad():
            first.bias += (first.weight * ((mean - m) / s)).sum((1, 2, 3))
            first.weight *= std / s
    return network, origin


def with_gap(network, classes, kernels=1024):
    """torchvision's AlexNet or VGG as Zhou 2016 (section 3) made AlexNet-GAP and VGGnet-GAP of it, to be fine-tuned.

    The last pooling and the fully connected layers go; a 3x3 convolution with `kernels` kernels, global average pooling
    and one linear layer for `classes` classes come. The convolutions are the network's own, not copies; the new
    layers start at random. Raises ValueError for a network whose `features` do not end in a max-pooling.
    """
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential) or not isinstance(features[-1], nn.MaxPool2d):
        raise ValueError(f"{type(network).__name__} is not built as AlexNet and VGG are: `features` that end in a "
                         "max-pooling, then fully connected layers")  # fmt: skip
    last = next(layer for layer in reversed(features) if isinstance(layer, nn.Conv2d))
    head = [nn.Conv2d(last.out_channels, kernels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *features[:-1], *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(kernels, classes)
    )


def imagenet(architecture, weights=""):
    """torchvision's `architecture` with ImageNet weights, in evaluation mode, and where the weights came from.

    weights  the path of a state_dict (.safetensors, or as torch.save writes it); empty for
             imagenet/<architecture>.safetensors in the data sets' folder, else torchvision's own download
    Raises ValueError for an unknown architecture, for weights that do not fit it and for a damaged download,
    FileNotFoundError for a path that is not there, ConnectionError where none is given or found and the network is
    silent for 10 s.
    """
    if architecture not in models.list_models(module=models):
        raise ValueError(
            f"torchvision has no classification network {architecture!r}; try squeezenet1_1 or resnet18"
        )
    path = (
        Path(weights).expanduser()
        if weights
        else paths.dataset(f"imagenet/{architecture}.safetensors")
    )
    if not path.exists() and not weights:
        return _downloaded(architecture), "torchvision's download"
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {path}; leave `weights` empty to have them searched for and downloaded"
        )
    options = (
        {"transform_input": True, "init_weights": False}
        if architecture in ("googlenet", "inception_v3")
        else {}
    )
    return filled(models.get_model(architecture, weights=None, **options), path), path.name


def prepared(photograph, side=224):
    """A photograph uint8 (H, W, 3) as torchvision's ImageNet networks were trained to see it: (1, 3, h, w) float32.

    The shorter side becomes `side` pixels, each channel has ImageNet's mean taken off and is divided by its deviation.
    Raises ValueError for a grey, RGBA or 16-bit photograph.
    """
    photograph = np.asarray(photograph)
    if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8:
        raise ValueError(f"the photograph is {photograph.dtype} {photograph.shape}, not uint8 (H, W, 3): open it with "
                         "Pillow and .convert('RGB')")  # fmt: skip
    image = torch.tensor(photograph).permute(2, 0, 1)[None] / 255
    size = [round(side * length / min(image.shape[2:])) for length in image.shape[2:]]
    image = functional.interpolate(image, size, mode="bilinear", antialias=True)
    mean, deviation = torch.tensor(IMAGENET)[:, :, None, None]
    return (image - mean) / deviation


def filled(network, path):
    """`network` with the weights of a state_dict on disk, .safetensors or as torch.save writes it, to evaluate.

    Raises FileNotFoundError for a path that is not there, ValueError for a file that cannot be read or does not fit,
    with the first names in the file and in the network.
    """
    path, state = Path(path).expanduser(), {}
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, "cpu", weights_only=True)
        )
        network.load_state_dict(state)
    except Exception as error:
        found, expected = (
            ", ".join(map(str, list(keys)[:3])) for keys in (state, network.state_dict())
        )
        raise ValueError(f"{path.name} does not fit {type(network).__name__} ({type(error).__name__}): it holds "
                         f"{found or 'nothing readable'}, ... instead of {expected}, ...") from error  # fmt: skip
    return network.eval()


def _downloaded(architecture):
    source, answer, timeout = (
        next(iter(models.get_model_weights(architecture))),
        [],
        socket.getdefaulttimeout(),
    )

    def ask():
        try:
            urlopen(source.url, timeout=SILENCE).close()
            answer.append(None)
        except Exception as error:
            answer.append(error)

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(source.url).name
    if cached.exists():
        try:
            return models.get_model(architecture, weights=source).eval()
        except Exception as error:
            raise ValueError(f"{cached}, torchvision's download, cannot be used ({type(error).__name__}): it is "
                             "damaged or was cut off. Delete it and run this notebook again") from error  # fmt: skip
    try:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(SILENCE)
        if answer != [None]:
            raise answer[0] if answer else TimeoutError(f"no answer for {SILENCE} s")
        socket.setdefaulttimeout(SILENCE)
        return models.get_model(architecture, weights=source, progress=False).eval()
    except Exception as error:
        raise ConnectionError(
            f"no ImageNet weights for {architecture} on disk, {type(error).__name__} from the network. To get them:\n"
            f"1. download {source.url}\n"
            "2. put the file into checkpoints/ in the folder torch.hub.get_dir() names, often ~/.cache/torch/hub\n"
            f"3. or give its path as `weights`, or save it as imagenet/{architecture}.safetensors where "
            "COMPANION_DATASETS points\n"
            "4. run this notebook again"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
