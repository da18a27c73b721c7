"""Class activation maps: Zhou, Khosla, Lapedriza, Oliva, Torralba 2016, section 2.

The last feature maps f_k(x, y) are averaged over the image, F_k = mean_{x,y} f_k(x, y) (the paper
writes a sum). A linear map gives the class scores S_c = sum_k w_k^c F_k + b_c (the paper leaves out
b_c). Exchanging the two sums,

    M_c(x, y) = sum_k w_k^c f_k(x, y)     (Eq. 2)     and     S_c = mean_{x,y} M_c(x, y) + b_c.
"""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WEIGHTED = nn.Linear | nn.Conv2d


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Put `network` into evaluation mode and afterwards every module back into its own mode."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield network.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def check_images(images: Tensor) -> None:
    """Refuse what no network can take, and warn of images that look like 0..255.

    Args:
        images: (B, C, H, W) floating point.

    Raises:
        ValueError: another shape or type, an empty batch, NaN or infinite values.
    """
    if not torch.is_tensor(images):
        raise ValueError(
            f"images are {type(images).__name__}; give a floating point tensor (B, C, H, W), none "
            "of them 0"
        )
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}; give a floating point tensor "
            "(B, C, H, W), none of them 0"
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


class _Watch(TorchFunctionMode):
    """What passes the head in one forward pass.

    `maps` are the last (B, K, h, w) larger than 1x1 that any operation returned before the head was
    called; `head_input` is what the head got and `head_output` what it gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps = None
        self.head_input = None
        self.head_output = None

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before_head = self.head_output is None
        if before_head and isinstance(result, Tensor) and result.ndim == 4:
            if result.shape[2:].numel() > 1:
                self.maps = result
        return result

    def head_called(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.head_input = inputs[0]
        self.head_output = output


def _weighted_layers(network: nn.Module) -> list[nn.Module]:
    layers = [module for module in network.modules() if isinstance(module, WEIGHTED)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no linear or convolutional layer to take class weights "
            "from"
        )
    return layers


def forward_to_head(
    network: nn.Module, images: Tensor, context: AbstractContextManager | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass that also returns what the class scores were averaged from.

    The head is the layer with weights that was registered last. That it sees a global average is
    checked by value, not by the network's name.

    Args:
        network: any network that ends in a globally averaged head.
        images: (B, C, H, W) float, normalised as the network was trained.
        context: entered for the forward pass, as `lib.methods.clear` does.

    Returns:
        The scores (B, N); the last feature maps f (B, K, h, w); and the class kernels' responses
        z (B, N, h, w) with mean_{x,y} z = scores (of max(z, 0) where a ReLU follows, as in
        SqueezeNet). z includes the bias b_c, M_c does not.

    Raises:
        ValueError: images as in `check_images`, of other channels or too small; scores that are
            not finite; scores that are no average of maps larger than 1x1, so that there is no
            class activation map.
    """
    check_images(images)
    layers = _weighted_layers(network)
    _check_channels(network, layers[0], images)
    scores, watch = _run(network, layers[-1], images, context)
    if torch.is_tensor(scores) and not scores.isfinite().all():
        raise ValueError(_not_finite(network, scores))
    averaged = _averaged_maps(layers[-1], scores, watch)
    if averaged is None:
        raise ValueError(
            f"{type(network).__name__}: the class scores for images {tuple(images.shape[2:])} are "
            "not one linear map of globally averaged feature maps larger than 1x1, so no class "
            "activation map exists (Zhou 2016, section 2). Give larger images, or replace the "
            "layers after the last convolution by global average pooling and one linear layer, and "
            "fine-tune"
        )
    return scores, *averaged


def _check_channels(network: nn.Module, first: nn.Module, images: Tensor) -> None:
    if isinstance(first, nn.Conv2d) and first.in_channels != images.shape[1]:
        raise ValueError(
            f"images have {images.shape[1]} channel(s), {type(network).__name__} takes "
            f"{first.in_channels}: convert grey or RGBA photographs with Pillow's .convert('RGB')"
        )


def _run(
    network: nn.Module, head: nn.Module, images: Tensor, context: AbstractContextManager | None
) -> tuple[Tensor, _Watch]:
    watch = _Watch()
    handle = head.register_forward_hook(watch.head_called)
    try:
        with evaluating(network), context or nullcontext(), watch:
            return network(images), watch
    except RuntimeError as error:
        if "too small" not in str(error) and "can't be greater than" not in str(error):
            raise
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels are smaller than the stride "
            f"of {type(network).__name__}: give larger ones ({error})"
        ) from error
    finally:
        handle.remove()


def _not_finite(network: nn.Module, scores: Tensor) -> str:
    cause = f"{scores.dtype} overflows: are the images normalised?"
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            cause = f"its weights {name} do"
            break
    return f"{type(network).__name__}'s scores hold NaN or infinite values; {cause}"


def _averaged_maps(head: nn.Module, scores: Any, watch: _Watch) -> tuple[Tensor, Tensor] | None:
    """The maps f and responses z whose mean the scores are; None where the scores are no mean."""
    f, z = watch.maps, watch.head_output
    if f is None or z is None or not torch.is_tensor(scores):
        return None
    if z.ndim == 4 and z[0, 0].numel() > 1:  # a convolution, then the average
        for response in (z, z.clamp(min=0)):
            if _close(response.mean((2, 3)), scores):
                return watch.head_input, z
        return None
    if _close(f.mean((2, 3)), watch.head_input.flatten(1)) and _close(z.flatten(1), scores):
        kernels = head.weight.flatten(1)[:, :, None, None]
        return f, functional.conv2d(f, kernels, head.bias)
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-3 * b.abs().max().item()
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-2, atol=tolerance)


def features_and_weights(
    network: nn.Module,
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor | None]:
    """The network as Eq. 1 sees it: feature maps, then w_k^c and b_c.

    Returns:
        `features`, a function from images (B, C, H, W) to f (B, K, h, w), which raises as
        `forward_to_head`; the weights w_k^c (N, K), of a linear layer or a 1x1 convolution; and
        the bias b_c (N,), or None.

    Raises:
        ValueError: the last layer with weights is neither.
    """
    head = _weighted_layers(network)[-1]
    if isinstance(head, nn.Conv2d) and (head.kernel_size != (1, 1) or head.groups != 1):
        raise ValueError(
            f"{type(network).__name__} ends in {head}, but w_k^c is one number for each feature "
            "map k and class c: a linear layer or a 1x1 convolution"
        )
    bias = None if head.bias is None else head.bias.detach()

    def features(images: Tensor) -> Tensor:
        return forward_to_head(network, images)[1]

    return features, head.weight.detach().flatten(1), bias


def class_indices(classes: Iterable[int] | None, count: int) -> list[int]:
    """`classes` as a list of class indices; None means all of `count`.

    Raises:
        ValueError: a class outside 0..count-1.
    """
    if classes is None:
        return list(range(count))
    indices = [operator.index(c) for c in classes]
    wrong = [c for c in indices if not 0 <= c < count]
    if wrong:
        raise ValueError(
            f"classes {wrong} out of range; the network has {count} classes, 0 to {count - 1}"
        )
    return indices


def class_activation_maps(
    network: nn.Module, images: Tensor, classes: Iterable[int] | None = None
) -> tuple[Tensor, Tensor]:
    """M_c(x, y) = sum_k w_k^c f_k(x, y), the class activation maps (Zhou 2016, Eq. 2).

    Args:
        network: a network that ends in global average pooling and one linear layer.
        images: (B, C, H, W) float, normalised as the network was trained.
        classes: indices of the classes whose maps are wanted; None for all N.

    Returns:
        The scores (B, N) and the maps (B, len(classes), h, w) at the feature maps' resolution.

    Raises:
        ValueError: as `forward_to_head`, `features_and_weights` and `class_indices`.

    Example:
        scores, maps = class_activation_maps(network, images)
        heat = upsample(maps, images.shape[2:])[0, scores[0].argmax()]
    """
    _, weight, _ = features_and_weights(network)
    wanted = class_indices(classes, len(weight))
    with torch.no_grad():
        scores, f, _ = forward_to_head(network, images)
        return scores, functional.conv2d(f, weight[wanted][:, :, None, None])


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, N, h, w) bilinearly up-sampled to an image's size (H, W) (Zhou 2016, section 2)."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
