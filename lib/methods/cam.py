"""Class activation maps: Zhou, Khosla, Lapedriza, Oliva, Torralba 2016, section 2.

The last feature maps f_k(x, y) are averaged over the image, F_k = mean_{x,y} f_k(x, y). A linear
map gives the class scores S_c = sum_k w_k^c F_k + b_c (the paper leaves out b_c). Exchanging the
two sums,

    M_c(x, y) = sum_k w_k^c f_k(x, y)     (Eq. 2)     and     S_c = mean_{x,y} M_c(x, y) + b_c.

The paper's Eq. 1 writes F_k = sum_{x,y} f_k(x, y). A network that sums so has the same M_c, and
S_c = sum_{x,y} M_c(x, y) + b_c.
"""

import operator
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint


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


def tensors_in(values: Iterable) -> list[Tensor]:
    """The tensors among an operation's arguments or results, and in lists and slices of them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
        elif isinstance(value, slice):
            found += tensors_in((value.start, value.stop, value.step))
    return found


def version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where PyTorch does not count."""
    return None if tensor.is_inference() else tensor._version


class _Call(NamedTuple):
    """One call of a linear map or a convolution."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: tuple  # stride, padding, dilation, groups
    output: Tensor
    versions: tuple  # of input and output: a step in place counts them up
    maps: Tensor | None  # the last (B, K, h, w) larger than 1x1 before the call
    pooled: list[Tensor]  # what was made of these maps, and of nothing else, before the call


_NEVER_AFTER_HEAD = (functional.linear, torch.conv2d, functional.batch_norm, functional.max_pool2d)


class _Watch(TorchFunctionMode):
    """What passes the head, the last linear map or convolution called, in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = None
        self.pooled = []
        self.head = None
        self.weights = []  # of all calls

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NEVER_AFTER_HEAD:
            self.head = None  # it was none; its maps' memory is needed
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if func is functional.linear or func is torch.conv2d:
                called = _arguments(*args, **kwargs)
                versions = version(called[0]), version(result)
                self.head = _Call(*called, result, versions, self.maps, self.pooled)
                self.weights.append(self.head.weight)
            if _is_map(result):
                self.maps = result
                self.pooled = [result]
            elif self.maps is not None:
                sources = tensors_in((*args, *kwargs.values()))
                if sources and all(_among(source, self.pooled) for source in sources):
                    self.pooled = [*self.pooled, result]
        return result


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple = 1,
    padding: int | tuple | str = 0,
    dilation: int | tuple = 1,
    groups: int = 1,
) -> tuple:
    """The arguments of torch's linear and conv2d, given by position or by name."""
    return input, weight, bias, (stride, padding, dilation, groups)


def _is_map(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[2:].numel() > 1


def _among(tensor: Tensor, tensors: list[Tensor]) -> bool:
    return any(tensor is other for other in tensors)


class _Once:
    """In the place of a checkpoint that forgets what it computed: it just computes."""

    @staticmethod
    def apply(function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


_CHECKPOINTS = {"CheckpointFunction": _Once, "_checkpoint_hook": lambda frame: nullcontext()}
_CHECKPOINTED = {name: getattr(checkpoint, name) for name in _CHECKPOINTS}
_ALONE = threading.RLock()  # both switches are the process's, not the thread's


@contextmanager
def _as_written() -> Iterator[None]:
    """Within this context nothing is checkpointed and nothing compiled: all steps can be seen."""
    stance = nullcontext()
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and it takes seconds to import
        stance = torch.compiler.set_stance("force_eager")
    with _ALONE, stance:
        vars(checkpoint).update(_CHECKPOINTS)
        try:
            yield
        finally:
            vars(checkpoint).update(_CHECKPOINTED)


def as_built(network: nn.Module) -> nn.Module:
    """The network inside `torch.compile` and `DataParallel`.

    Raises:
        ValueError: weights without values.
    """
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif hasattr(network, "_orig_mod"):  # compiled
            network = network._orig_mod
        else:
            break
    for name, weights in network.named_parameters():
        if is_lazy(weights) or weights.is_meta:
            raise ValueError(
                f"{type(network).__name__}'s weights {name} have no values yet (a lazy layer or "
                "the device meta): load them, or pass one batch through the network first"
            )
    return network


def scripted(network: nn.Module) -> str | None:
    """What to say where a part of `network` is TorchScript, whose steps cannot be seen."""
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"{type(network).__name__}'s part {name}" if name else "the network"
            return (
                f"{part} is compiled by torch.jit, so that its steps cannot be seen: give the "
                "network as it was before torch.jit.script or torch.jit.trace"
            )
    return None


def forward_to_head(
    network: nn.Module, images: Tensor, context: AbstractContextManager | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass that also returns what the class scores were averaged from.

    The head is the last linear map or convolution that is called. That it sees a global average is
    checked by value, not by the network's name. Checkpoints are switched off for the call, and what
    is compiled runs as it was written.

    Args:
        network: any network that ends in a globally averaged head.
        images: (B, C, H, W) float, normalised as the network was trained. The network gets a copy,
            so that one that changes its input in place does not change them.
        context: entered for the forward pass, as `lib.methods.clear` does, whose images are a copy
            already.

    Returns:
        The scores (B, N); the last feature maps f (B, K, h, w); and the class kernels' responses
        z (B, N, h, w) with mean_{x,y} z = scores (of max(z, 0) where a ReLU follows, as in
        SqueezeNet). z includes the bias b_c, M_c does not. Where the network sums instead of
        averaging, sum_{x,y} z = scores; a linear layer's b_c is spread evenly over the places then.

    Raises:
        ValueError: images as in `check_images`, of other channels or too small; scores that are
            not one tensor (B, N) or not finite; a head that is called twice; scores that are no
            average of maps larger than 1x1, so that there is no class activation map.
    """
    return _pass(network, images, context)[:3]


def _pass(
    network: nn.Module, images: Tensor, context: AbstractContextManager | None = None
) -> tuple[Tensor, Tensor, Tensor, _Call]:
    """What `forward_to_head` returns, and the call of the head."""
    check_images(images)
    network = as_built(network)
    scores, watch = _run(network, images, context)
    head = watch.head
    if not watch.weights:
        raise ValueError(
            scripted(network)
            or f"{type(network).__name__} has no linear or convolutional layer to take class "
            "weights from"
        )
    check_scores(network, scores, images, (head.input.dtype, head.output.dtype) if head else ())
    if head and sum(_same(weight, head.weight) for weight in watch.weights) > 1:
        raise ValueError(
            f"{type(network).__name__} calls its head, of weights {tuple(head.weight.shape)}, more "
            "than once, as averages over flips and siamese networks do, but a map belongs to one "
            "call: give the network that is called once, and average its maps"
        )
    averaged = _averaged_maps(head, scores) if head else None
    if averaged is None:
        raise ValueError(
            scripted(network)
            or f"{type(network).__name__}: the class scores for images {tuple(images.shape[2:])} "
            "are not one linear map of globally averaged feature maps larger than 1x1, so no class "
            "activation map exists (Zhou 2016, section 2). Give larger images, or replace the "
            "layers after the last convolution by global average pooling and one linear layer, and "
            "fine-tune"
        )
    return scores, *averaged, head


def _run(
    network: nn.Module, images: Tensor, context: AbstractContextManager | None
) -> tuple[Any, _Watch]:
    watch = _Watch()
    image = images.clone() if context is None else images
    try:
        with evaluating(network), _as_written(), context or nullcontext(), watch:
            return network(image), watch
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        name = type(network).__name__
        if "too small" in str(error) or "can't be greater than" in str(error):
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels are smaller than the "
                f"stride of {name}: give larger ones ({error})"
            ) from error
        if not watch.weights:
            raise ValueError(_misfit(name, images, str(error))) from error
        raise


def _misfit(name: str, images: Tensor, error: str) -> str:
    """What to say where a network failed before its first layer had an output."""
    found = re.search(r"to have (\d+) channels, but got (\d+) channels", error)
    if not found or int(found[2]) != images.shape[1]:
        return f"{name} fails on images {images.dtype} {tuple(images.shape)}: {error}"
    message = f"images have {found[2]} channel(s), {name} takes {found[1]}"
    if found[1] == "3":
        message += ": convert grey or RGBA photographs with Pillow's .convert('RGB')"
    return message


def _same(weight: Tensor, other: Tensor) -> bool:
    """Whether two calls had the same weights; those that are computed are anew for each call."""
    if isinstance(weight, nn.Parameter) or weight.shape != other.shape:
        return weight is other
    return torch.equal(weight, other)


def check_scores(
    network: nn.Module, scores: Any, images: Tensor, dtypes: Iterable[torch.dtype] = ()
) -> None:
    """Refuse what are no class scores (B, N), and such as are not finite.

    Args:
        network: what answered.
        scores: its answer.
        images: (B, C, H, W), what it was asked.
        dtypes: in which it computed, beside that of the scores.

    Raises:
        ValueError: scores in a tuple, a dictionary or a named output, of another shape, with NaN or
            infinite values.
    """
    name = type(network).__name__
    wanted = f"one tensor of class scores (B, N) = ({len(images)}, N) is needed"
    if not isinstance(scores, Tensor):
        names = scores if isinstance(scores, dict) else getattr(scores, "_fields", ())
        parts = f" of {', '.join(map(str, names))}" if names else ""
        raise ValueError(
            f"{name} answers with a {type(scores).__name__}{parts}, and {wanted}: wrap it in a "
            "module whose forward returns the class scores alone"
        )
    if scores.ndim != 2 or len(scores) != len(images):
        raise ValueError(
            f"{name} answers with scores {tuple(scores.shape)}, and {wanted}: wrap it in a module "
            "whose forward returns them so, one score of each image as (B, 1), without squeeze"
        )
    if not scores.isfinite().all():
        cause = overflow(scores.dtype, *dtypes)
        for key, value in network.state_dict().items():
            if not value.isfinite().all():
                cause = f"its weights {key} do"
                break
        raise ValueError(f"{name}'s scores hold NaN or infinite values; {cause}")


def overflow(*dtypes: torch.dtype) -> str:
    """Which precision overflowed, of those that were computed in, and what to do."""
    narrowest = min(dtypes, key=lambda dtype: torch.finfo(dtype).max)
    limit = f"{narrowest} overflows beyond {torch.finfo(narrowest).max:.3g}: "
    if narrowest == torch.float16:
        return limit + "compute in bfloat16 or float32 (network.float(), images.float())"
    return limit + "are the images normalised?"


def _averaged_maps(head: _Call, scores: Tensor) -> tuple[Tensor, Tensor] | None:
    """The maps f and responses z whose mean or sum the scores are; None where they are neither."""
    z = head.output
    if None in head.versions or head.versions != (version(head.input), version(z)):
        z = _called_again(head)  # a step in place changed it, as SqueezeNet's ReLU
    if _is_map(z):  # a convolution, then the average
        for response in (z, z.clamp(min=0)):
            if _close(response.mean((2, 3)), scores) or _close(response.sum((2, 3)), scores):
                return head.input, z
        return None
    f = head.maps
    if f is None or not _among(head.input, head.pooled) or not _close(z.flatten(1), scores):
        return None
    weight = head.weight.flatten(1)
    if weight.shape[1] != f.shape[1]:
        return None
    for average, places in ((f.mean((2, 3)), 1), (f.sum((2, 3)), f[0, 0].numel())):
        if _close(average, head.input.flatten(1)):
            bias = None if head.bias is None else head.bias / places
            return f, functional.conv2d(_alive(f, weight), weight[:, :, None, None], bias)
    return None


def _called_again(head: _Call) -> Tensor:
    given = _alive(head.input, head.weight)
    if head.weight.ndim == 2:
        return functional.linear(given, head.weight, head.bias)
    return torch.conv2d(given, head.weight, head.bias, *head.geometry)


def _alive(maps: Tensor, weight: Tensor) -> Tensor:
    """Maps to multiply with `weight`, also such as autocast or inference_mode made."""
    return (maps.clone() if maps.is_inference() else maps).to(weight.dtype)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one but for rounding, of single precision or what they are of."""
    tolerance = max(1e-4, 4 * torch.finfo(a.dtype).eps, 4 * torch.finfo(b.dtype).eps)
    a, b = a.detach().float(), b.detach().float()
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=tolerance, atol=tolerance * b.abs().max().item()
    )


def features_and_weights(
    network: nn.Module, images: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The network as Eq. 1 sees it: feature maps, then w_k^c and b_c.

    Args:
        network: a network that ends in global average pooling and one linear layer.
        images: (B, C, H, W) float, normalised as the network was trained.

    Returns:
        f (B, K, h, w), the feature maps of the images; the weights w_k^c (N, K), of a linear layer
        or a 1x1 convolution; and the bias b_c (N,), or None.

    Raises:
        ValueError: as `forward_to_head`; the head is neither.
    """
    with torch.no_grad():
        _, f, z, head = _pass(network, images)
    return f, *_class_weights(network, f, z, head)


def _class_weights(
    network: nn.Module, f: Tensor, z: Tensor, head: _Call
) -> tuple[Tensor, Tensor | None]:
    weight = head.weight.detach()
    stride, _, _, groups = head.geometry
    if (
        weight[0, 0].numel() != 1
        or (groups, *_pair(stride)) != (1, 1, 1)
        or f.shape[2:] != z.shape[2:]
    ):
        raise ValueError(
            f"{type(network).__name__} ends in a convolution with kernels {tuple(weight.shape)}, "
            f"stride {stride} and {groups} group(s), but w_k^c is one number for each feature map "
            "k and class c: a linear layer or a 1x1 convolution"
        )
    return weight.flatten(1), None if head.bias is None else head.bias.detach()


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
        ValueError: as `forward_to_head`, `features_and_weights` and `class_indices`; maps that
            overflow.

    Example:
        scores, maps = class_activation_maps(network, images)
        heat = upsample(maps, images.shape[2:])[0, scores[0].argmax()]
    """
    with torch.no_grad():
        scores, f, z, head = _pass(network, images)
        weight, _ = _class_weights(network, f, z, head)
        wanted = class_indices(classes, len(weight))
        maps = functional.conv2d(_alive(f, weight), weight[wanted][:, :, None, None])
    if not maps.isfinite().all():
        raise ValueError(f"the maps hold NaN or infinite values; {overflow(f.dtype, maps.dtype)}")
    return scores, maps


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, N, h, w) bilinearly up-sampled to an image's size (H, W) (Zhou 2016, section 2)."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
