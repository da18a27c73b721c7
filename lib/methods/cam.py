"""Class activation maps: Zhou, Khosla, Lapedriza, Oliva, Torralba 2016, section 2.

The last feature maps f_k(x, y) are averaged over the image, F_k = mean_{x,y} f_k(x, y) (the paper writes a sum), and
a linear map gives the class scores S_c = sum_k w_k^c F_k + b_c (the paper leaves out b_c). Exchanging the two sums,

    M_c(x, y) = sum_k w_k^c f_k(x, y)        (Eq. 2)        and        S_c = mean_{x,y} M_c(x, y) + b_c.
"""

import operator
import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def evaluating(network):
    """Put `network` into evaluation mode and afterwards every module back into the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield network.eval()
    finally:
        for module, mode in modes:
            module.training = mode


class _Watch(TorchFunctionMode):
    """Keeps the last maps (B, K, h, w) larger than 1x1 that any operation returned before `head` was called."""

    def __init__(self):
        super().__init__()
        self.f = self.F = self.z = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (
            self.z is None
            and isinstance(result, torch.Tensor)
            and result.ndim == 4
            and result.shape[2:].numel() > 1
        ):
            self.f = result
        return result

    def head(self, module, inputs, output):
        self.F, self.z = inputs[0], output


def _head(network):
    weighted = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not weighted:
        raise ValueError(
            f"{type(network).__name__} has no linear or convolutional layer to take class weights from"
        )
    return weighted[-1]


def check(images):
    """Raise ValueError for images that are not finite floating point (B, C, H, W); warn where they look like 0..255."""
    if not (
        torch.is_tensor(images)
        and images.ndim == 4
        and images.is_floating_point()
        and images.numel()
    ):
        got = (
            f"{images.dtype} {tuple(images.shape)}"
            if torch.is_tensor(images)
            else type(images).__name__
        )
        raise ValueError(
            f"images are {got}; give a floating point tensor (B, C, H, W), none of them 0"
        )
    low, high = images.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(
            f"images hold NaN or infinite values: they go from {low.item()} to {high.item()}"
        )
    if low >= 0 and high > 100:
        warnings.warn(
            f"images go up to {high.item():g}: normalise them as the network was trained",
            stacklevel=3,
        )


def forward(network, images, context=None):
    """One forward pass, inside `context` if given, that also returns what the class scores were averaged from.

    Returns scores (B, N), the last feature maps f (B, K, h, w) and the class kernels' responses z (B, N, h, w) with
    mean_{x,y} z = scores (of max(z, 0) where a ReLU follows, as in SqueezeNet). z includes the bias b_c, M_c does not.
    The head is the layer with weights registered last. That it sees a global average is checked by value: raises
    ValueError where the scores are not finite or no average of maps larger than 1x1, so where there is no class
    activation map.
    """
    check(images)
    head, name, watch = _head(network), type(network).__name__, _Watch()
    first = next(
        module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    )
    if isinstance(first, nn.Conv2d) and first.in_channels != images.shape[1]:
        raise ValueError(f"images have {images.shape[1]} channel(s), {name} takes {first.in_channels}: convert grey or "
                         "RGBA photographs with Pillow's .convert('RGB')")  # fmt: skip
    handle = head.register_forward_hook(watch.head)
    try:
        with evaluating(network), context or nullcontext(), watch:
            scores = network(images)
    except RuntimeError as error:
        if "too small" not in str(error) and "can't be greater than" not in str(error):
            raise
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]} pixels are smaller than the stride of "
                         f"{name}: give larger ones ({error})") from error  # fmt: skip
    finally:
        handle.remove()

    f, F, z = watch.f, watch.F, watch.z
    if torch.is_tensor(scores) and not scores.isfinite().all():
        broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
        cause = (
            f"its weights {broken[0]} do"
            if broken
            else f"{scores.dtype} overflows: are the images normalised?"
        )
        raise ValueError(f"{name}'s scores hold NaN or infinite values; {cause}")
    pooled = f is not None and z is not None and torch.is_tensor(scores)
    if pooled and z.ndim == 4 and z[0, 0].numel() > 1:
        f = F
        pooled = any(_close(response.mean((2, 3)), scores) for response in (z, z.clamp(min=0)))
    elif pooled:
        pooled = _close(f.mean((2, 3)), F.flatten(1)) and _close(z.flatten(1), scores)
        z = (
            functional.conv2d(f, head.weight.flatten(1)[:, :, None, None], head.bias)
            if pooled
            else None
        )
    if not pooled:
        raise ValueError(f"{name}: the class scores for images {tuple(images.shape[2:])} are not one linear map of "
                         "globally averaged feature maps larger than 1x1, so no class activation map exists "
                         "(Zhou 2016, section 2). Give larger images, or replace the layers after the last convolution "
                         "by global average pooling and one linear layer, and fine-tune")  # fmt: skip
    return scores, f, z


def _close(a, b):
    return a.shape == b.shape and torch.allclose(
        a.float(), b.float(), rtol=1e-2, atol=1e-3 * b.abs().max().item()
    )


def split(network):
    """The network as Eq. 1 sees it: `(features, weight (N, K), bias (N,) or None)`.

    `features(images (B, C, H, W)) -> f (B, K, h, w)`; weight is w_k^c, from a linear layer or a 1x1 convolution.
    Raises ValueError where the last layer is neither; `features` raises where it is not preceded (linear layer) or
    followed (convolution) by global average pooling.
    """
    head = _head(network)
    if isinstance(head, nn.Conv2d) and (head.kernel_size != (1, 1) or head.groups != 1):
        raise ValueError(f"{type(network).__name__} ends in {head}, but w_k^c is one number for each feature map k "
                         "and class c: a linear layer or a 1x1 convolution")  # fmt: skip
    bias = None if head.bias is None else head.bias.detach()
    return lambda images: forward(network, images)[1], head.weight.detach().flatten(1), bias


def chosen(classes, count):
    """`classes` as a list of class indices below `count`; None means all. Raises ValueError out of range."""
    indices = list(range(count)) if classes is None else [operator.index(c) for c in classes]
    if wrong := [c for c in indices if not 0 <= c < count]:
        raise ValueError(
            f"classes {wrong} out of range; the network has {count} classes, 0 to {count - 1}"
        )
    return indices


def class_activation_maps(network, images, classes=None):
    """M_c(x, y) = sum_k w_k^c f_k(x, y) for all classes or those in `classes` (Zhou 2016, Eq. 2).

    Takes images (B, C, H, W) float, normalised as the network was trained. Returns scores (B, N) and maps
    (B, len(classes) or N, h, w) at the feature maps' resolution. Raises ValueError as `forward` and `split` do.
    """
    _, weight, _ = split(network)
    wanted = chosen(classes, len(weight))
    with torch.no_grad():
        scores, f, _ = forward(network, images)
        return scores, functional.conv2d(f, weight[wanted][:, :, None, None])


def upsample(maps, size):
    """Maps (B, N, h, w) bilinearly up-sampled to the image's `size` (H, W), as section 2 of the paper says."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def box(map, threshold=0.2):
    """The bounding box `(x0, y0, x1, y1)` of the largest connected part of a map (H, W) above `threshold` x maximum.

    Zhou 2016, section 3.2: 20 % of the maximum. In pixels, x1 and y1 exclusive; neighbours share an edge; of parts
    equally large, the uppermost.
    Raises ValueError for a map without a positive finite maximum, one equal everywhere and a threshold outside [0, 1).
    """
    values = np.asarray(map.detach().cpu().float() if torch.is_tensor(map) else map)
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold is {threshold}; give a share of the map's maximum, 0 <= threshold < 1"
        )
    if values.ndim != 2 or not np.isfinite(values).all() or values.max() <= max(values.min(), 0):
        raise ValueError(f"no box in a map of shape {values.shape} with values from {values.min()} to {values.max()}: "
                         "give a finite map (H, W), not the same everywhere, with a positive maximum")  # fmt: skip
    parts, _ = ndimage.label(values > threshold * values.max())
    rows, columns = ndimage.find_objects(parts)[np.bincount(parts.ravel())[1:].argmax()]
    return columns.start, rows.start, columns.stop, rows.stop
