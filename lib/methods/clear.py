"""CLass-Enhanced Attentive Response: Kumar, Wong, Taylor 2017, section 3.

The response z_L^c of each class kernel c in the last convolutional layer L is projected back to the
input,

    R(x|c) = G_1 U_1 G_2 U_2 ... G_{L-1} U_{L-1} G_L^c z_L        (Eq. 3)

with G_l the transposed convolution with layer l's kernels and U_l the unpooling to the positions of
the maxima. Eq. 3 is silent on what happens at a ReLU on the way back. With a the ReLU's input and R
what arrives there:

| relu        | passes on             | known as                                            |
|-------------|-----------------------|-----------------------------------------------------|
| "linear"    | R                     | Eq. 3 to the letter                                 |
| "deconvnet" | max(R, 0)             | deconvolutional network, Zeiler and Fergus 2014     |
| "gated"     | R where a > 0         | gradient times response, Simonyan et al. 2014       |
| "guided"    | max(R, 0) where a > 0 | guided backpropagation, Springenberg et al. 2015    |

A leaky ReLU of slope s has s R where the table has 0.

Notebook 02 measures CLEAR's Table 1 for each. It does not tell them apart: over ten trainings on
MNIST each comes near the paper's accuracies in some, none in all, and the plain gradient does as
well. The default is "guided", for its responses are the most for the true class after each of them.
The notebook also computes two readings that are no options here: unpooling to a fixed or to every
place instead of the maxima's, and |R|.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from lib.methods import cam

# For each reading of Eq. 3: (closed on the way back where it was on the way forward, rectified).
RULES = {
    "linear": (False, False),
    "deconvnet": (False, True),
    "gated": (True, False),
    "guided": (True, True),
}
DIGIT_HUES = tuple(digit / 10 for digit in range(10))
GRADE_HUES = (0.60, 0.44, 0.15, 0.06, 0.87)
_PIXELS = 1 << 19  # to hold at a time

_aten = torch.ops.aten
# Steps on the way back, by autograd's names, that project a response linearly: G_l, U_l and what
# moves or adds maps.
_LINEAR = {
    "Convolution", "SlowConvDilated2D", "Addmm", "Mm", "Bmm", "T", "MaxPool2DWithIndices",
    "MaxPool2D", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D", "Mean", "Sum",
    "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "Add", "Sub", "Rsub", "Neg", "Mul",
    "Div", "Cat", "Stack", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Permute",
    "Transpose", "Expand", "Repeat", "Flip", "Roll", "Slice", "Select", "Split", "SplitWithSizes",
    "Unbind", "Index", "IndexSelect", "AsStrided", "Clone", "ToCopy", "Copy", "ConstantPadNd",
    "ReflectionPad2D", "ReplicationPad2D", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle",
    "UpsampleNearest2D", "UpsampleBilinear2D", "Alias", "AccumulateGrad",
}  # fmt: skip
# Of these, such as take several responses; for the others all but one must be constant.
_SUMS = {"Add", "Sub", "Rsub", "Cat", "Stack", "Copy", "CopySlices"}
# What may be done in place to a part of a tensor: autograd says of it only "CopySlices".
_IN_PLACE = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "__setitem__", "copy_", "zero_", "fill_", "add_",
    "sub_", "__iadd__", "__isub__",
}  # fmt: skip
_BY_A_CONSTANT = {"mul_", "div_", "__imul__", "__itruediv__"}
# What takes numbers out of a tensor, and what takes no more than its shape, type and place.
_NUMBERS = {"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__"}
_SHAPES = re.compile("new_.*|.*_like")
_SHAPES_OF_SECOND = re.compile(".*_as|to")


def _unreadable(step: str, how: str = "") -> ValueError:
    return ValueError(
        f"no reading of Eq. 3 is defined for {step}, which this network computes with its "
        f"responses{how}: attentive responses need convolutions, (leaky) ReLUs, pooling, batch "
        "normalisation and a globally averaged head"
    )


def _cut(step: str) -> ValueError:
    return _unreadable(step, " without a gradient (as under no_grad, by detach, .data or >)")


def _scratch(ctx: FunctionCtx, like: Tensor) -> Tensor:
    """One buffer on the way back for all classes: fresh memory for each costs up to a third."""
    if not hasattr(ctx, "scratch"):
        ctx.scratch = torch.empty_like(like)
    return ctx.scratch


class _ReLU(torch.autograd.Function):
    """max(a, slope * a) forwards; on the way back one of the four rules."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, a: Tensor, slope: float, in_place: bool, gate: bool, rectify: bool
    ) -> Tensor:
        ctx.slope = slope
        ctx.gate = gate
        ctx.rectify = rectify
        rectified = functional.leaky_relu(a, slope, in_place)
        if in_place:
            ctx.mark_dirty(a)
        if gate:
            ctx.save_for_backward(rectified)
        return rectified

    @staticmethod
    def backward(ctx: FunctionCtx, R: Tensor) -> tuple:
        if ctx.gate:
            (rectified,) = ctx.saved_tensors
            passed = _scratch(ctx, R)
            _aten.leaky_relu_backward.grad_input(R, rectified, ctx.slope, True, grad_input=passed)
            R = passed
        if ctx.rectify:
            R = _aten.leaky_relu.out(R, ctx.slope, out=_scratch(ctx, R))
        return R, *[None] * 4


class _MaxPool(torch.autograd.Function):
    """The maxima forwards, U_l back."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, *options: Any) -> Tensor:
        maxima, where = functional.max_pool2d(a, *options, return_indices=True)
        ctx.save_for_backward(a, where)
        ctx.options = [option if isinstance(option, bool) else _pair(option) for option in options]
        return maxima

    @staticmethod
    def backward(ctx: FunctionCtx, R: Tensor) -> tuple:
        a, where = ctx.saved_tensors
        unpool = _aten.max_pool2d_with_indices_backward.grad_input
        unpooled = unpool(R, a, *ctx.options, where, grad_input=_scratch(ctx, a))
        return unpooled, *[None] * len(ctx.options)


class _BatchNorm(torch.autograd.Function):
    """Normalised by running statistics, so that every kernel is scaled."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, a: Tensor, mean: Tensor, variance: Tensor, *scaling: Tensor | float | None
    ) -> Tensor:
        weight, bias, eps = scaling
        scale = (variance + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        ctx.scale = scale.to(a.dtype).view(-1, *[1] * (a.ndim - 2))
        return functional.batch_norm(a, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: FunctionCtx, R: Tensor) -> tuple:
        return torch.mul(R, ctx.scale, out=_scratch(ctx, R)), *[None] * 5


class _FirstConvolution(torch.autograd.Function):
    """The convolution that sees the image.

    On the way back the response is wanted summed over the image's channels, so its kernels are
    summed over them before they are projected back.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, response: Tensor, image: Tensor, weight: Tensor, *options: Any
    ) -> Tensor:
        bias, *geometry, groups = options
        ctx.save_for_backward(weight)
        ctx.size = image.shape[2:]
        ctx.geometry = geometry
        z = functional.conv2d(image, weight, bias, *geometry, groups)
        return z.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: FunctionCtx, R: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        summed = weight.sum(1)
        # A matrix product and a fold: a third of the time of conv_transpose2d to one channel.
        blocks = summed.flatten(1).T @ R.to(summed.dtype).flatten(2)
        kernel = summed.shape[1:]
        response = functional.fold(blocks, ctx.size, kernel, dilation, padding, stride)
        return response, *[None] * 7


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


_OURS = (_ReLU, _MaxPool, _BatchNorm, _FirstConvolution)


class _Reading(TorchFunctionMode):
    """Within this context every ReLU, module or function, in place or not, obeys one rule.

    The network itself is not touched. `response` (B, 1, H, W), zeros, is what to differentiate by:
    it is added to all channels of `image`, so that what arrives there is summed over them.
    """

    def __init__(self, rule: str, images: Tensor) -> None:
        super().__init__()
        self.rule = RULES[rule]
        self.plain = images.contiguous(memory_format=torch.channels_last)
        self.response = torch.zeros_like(images[:, :1], requires_grad=True)
        self.source = torch.autograd.graph.get_gradient_edge(self.response).node
        self.image = self.plain + self.response
        self.cut = []  # what was computed from responses without a gradient, and by which step
        self.shared = []  # the responses it was computed from, whose memory it may share
        self.parts = []  # the steps done in place that have a reading

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = cam.tensors_in((*args, *kwargs.values()))
        before = [(tensor, cam.version(tensor), tensor.grad_fn) for tensor in given]
        try:
            result = self.read(func, name, args, kwargs)
        except RuntimeError as error:
            if self.cut and "Inference tensors" in str(error):
                raise _cut(self.cut[0][1]) from error
            raise
        if self.cut or any(node for _, _, node in before):
            self.follow(name, before, result)
        return result

    def read(self, func: Callable, name: str, args: tuple, kwargs: dict) -> Any:
        if name in ("relu", "relu_", "leaky_relu", "leaky_relu_"):
            return self.rectify(name, *args, **kwargs)
        if func is functional.max_pool2d:
            return self.max_pool2d(*args, **kwargs)
        if func is functional.batch_norm:
            return self.batch_norm(*args, **kwargs)
        if func is torch.conv2d:
            return self.conv2d(*args, **kwargs)
        return func(*args, **kwargs)

    def follow(self, name: str, before: list[tuple], result: Any) -> None:
        """Note what was done in place; refuse what autograd did not see.

        Args:
            name: the operation's.
            before: the tensors it got, with their versions and steps before it.
            result: what it returned.
        """
        responses = [tensor for tensor, _, node in before if node]
        changed = [tensor for tensor, version, _ in before if cam.version(tensor) != version]
        sources = before
        if _SHAPES.fullmatch(name):
            sources = []
        elif _SHAPES_OF_SECOND.fullmatch(name):
            sources = before[:1]
        from_cut = [step for t, _, _ in sources for cut, step in self.cut if t is cut]
        results = cam.tensors_in([result]) + changed
        without = [tensor for tensor in results if not tensor.requires_grad]
        if from_cut and len(without) < len(results):
            raise _cut(from_cut[0])
        for tensor in changed:
            if tensor.requires_grad:
                if not torch.is_grad_enabled():
                    raise _cut(name)
                if name in _IN_PLACE or (name in _BY_A_CONSTANT and len(responses) == 1):
                    self.parts.append((tensor._base if tensor._is_view() else tensor).grad_fn)
            elif any(_same_memory(tensor, response) for response in self.shared):
                raise _cut(name)
        takes = without or name in _NUMBERS or (name == "__set__" and len(before) > 1)
        if takes and (from_cut or self.of_image([node for _, _, node in sources])):
            if not without:
                raise _cut(name)
            self.cut += [(tensor, *(from_cut or [name])[:1]) for tensor in without]
            self.shared += responses

    def of_image(self, stack: list) -> bool:
        """Whether any of these steps depends on the response."""
        seen = {None}
        while stack:
            node = stack.pop()
            if node is self.source:
                return True
            if node not in seen:
                seen.add(node)
                stack += [below for below, _ in node.next_functions]
        return False

    def rectify(self, name: str, input: Tensor, *options: Any, **named: Any) -> Tensor:
        """Called as relu(input, inplace) or leaky_relu(input, negative_slope, inplace)."""
        leaky = name.startswith("leaky")
        names = ("negative_slope", "inplace") if leaky else ("inplace",)
        named |= zip(names, options, strict=False)
        slope = named.get("negative_slope", 0.01) if leaky else 0
        if slope < 0:
            raise ValueError(
                f"a leaky ReLU has the slope {slope}: no reading of Eq. 3 is defined for one below "
                "0, which turns signs round"
            )
        in_place = bool(name.endswith("_") or named.get("inplace"))
        part = in_place and input._is_view()  # which no function of ours may change
        rectified = _ReLU.apply(input, slope, in_place and not part, *self.rule)
        return input.copy_(rectified) if part else rectified

    # The signatures below are PyTorch's.

    def max_pool2d(
        self,
        input: Tensor,
        kernel_size: int | tuple,
        stride: int | tuple | None = None,
        padding: int | tuple = 0,
        dilation: int | tuple = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        options = kernel_size, stride or kernel_size, padding, dilation, ceil_mode
        if return_indices:
            return functional.max_pool2d(input, *options, True)
        return _MaxPool.apply(input, *options)

    def batch_norm(
        self,
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training:
            return functional.batch_norm(
                input, mean, variance, weight, bias, training, momentum, eps
            )
        return _BatchNorm.apply(input, mean, variance, weight, bias, eps)

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple = 1,
        padding: int | tuple | str = 0,
        dilation: int | tuple = 1,
        groups: int = 1,
    ) -> Tensor:
        changed = self.image._version > 0
        if input is not self.image or changed or isinstance(padding, str):
            return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
        options = _pair(stride), _pair(padding), _pair(dilation), groups
        return _FirstConvolution.apply(self.response, self.plain, weight, bias, *options)


def _check_way_back(z: Tensor, reading: _Reading) -> None:
    """Raise ValueError where a step on the way from z back to the response has no reading."""
    users = {}  # for each step below z, the steps that lead to it
    stack = [z.grad_fn] if z.grad_fn else []
    while stack:
        node = stack.pop()
        for below in {below for below, _ in node.next_functions if below is not None}:
            if below not in users:
                users[below] = []
                stack.append(below)
            users[below].append(node)
    way = set()  # the steps between the response and z
    stack = [reading.source]
    while stack:
        node = stack.pop()
        if node not in way:
            way.add(node)
            stack += users.get(node, [])
    if z.grad_fn not in way:
        raise _cut(reading.cut[0][1] if reading.cut else "a step")
    for node in way:
        name = re.sub(r"Backwards?\d*$", "", node.name().removeprefix("torch::autograd::"))
        function = getattr(node, "_forward_cls", None)  # of one that is written in Python
        readable = function in _OURS if function else name in _LINEAR or node in reading.parts
        on_way = [below in way for below, _ in node.next_functions]
        of_two_responses = name not in _SUMS and sum(on_way) > 1
        by_a_response = name == "Div" and on_way[-1]
        trains = getattr(node, "_saved_training", False)
        if not readable or of_two_responses or by_a_response or trains:
            raise _unreadable(name)


def attentive_responses(
    network: nn.Module,
    images: Tensor,
    relu: str = "guided",
    classes: Iterable[int] | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """R(x|c), each class kernel's response projected back to the input (Kumar 2017, Eq. 3).

    What enters at the top is max(z_L^c, 0), a class kernel's evidence *for* its class; what arrives
    at the input is summed over the image's channels. One forward pass serves all classes; a class
    kernel that responds nowhere costs nothing. Works in any gradient mode and changes neither the
    network nor its gradients.

    Args:
        network: convolutions, (leaky) ReLUs, pooling, batch normalisation, an averaged head.
        images: (B, C, H, W) float, normalised as the network was trained.
        relu: the reading of Eq. 3 at a ReLU: "linear", "deconvnet", "gated" or "guided" (see the
            module's table).
        classes: class indices; None for all N.
        chunk: images to hold at a time; None for about half a million pixels: convolutions on two
            cores are fastest so, and 10,000 MNIST images or a 1024x1024 photograph stay below 2 GB.

    Returns:
        The scores (B, N) and the responses (B, len(classes), H, W).

    Raises:
        ValueError: an unknown reading; a class out of range; a chunk below 1; images or a head that
            `cam.forward_to_head` refuses; a step between image and head that is neither linear nor
            a (leaky) ReLU, such as a sigmoid, layer normalisation or attention.

    Example:
        scores, R = attentive_responses(network, images)
        clear_maps = render(R, DIGIT_HUES)
    """
    if relu not in RULES:
        raise ValueError(
            f"relu is {relu!r}; the readings of Eq. 3 are {', '.join(map(repr, RULES))}"
        )
    cam.check_images(images)
    classes = None if classes is None else list(classes)  # every part asks for them
    if chunk is None:
        chunk = max(1, _PIXELS // images[0, 0].numel())
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least 1 image at a time, or None")
    all_scores = []
    all_responses = []
    for part in images.detach().split(chunk):
        scores, responses = _responses(network, part, relu, classes)
        all_scores.append(scores)
        all_responses.append(responses)
    return torch.cat(all_scores), torch.cat(all_responses)


def _responses(
    network: nn.Module, images: Tensor, relu: str, classes: Iterable[int] | None
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        part = cam.scripted(network)
        if part:
            raise ValueError(part)
        reading = _Reading(relu, images)
        scores, _, z = cam.forward_to_head(network, reading.image, reading)
        _check_way_back(z, reading)
        wanted = cam.class_indices(classes, z.shape[1])
        responses = images.new_zeros(len(images), len(wanted), *images.shape[2:])
        for i, c in enumerate(wanted):
            top = z[:, c].detach().clamp(min=0)
            if top.any():
                responses[:, i] = _project(z[:, c], reading.response, top)[:, 0]
    if not responses.isfinite().all():
        raise ValueError(
            f"the responses hold NaN or infinite values; {cam.overflow(z.dtype, responses.dtype)}"
        )
    return scores.detach(), responses


def _project(z: Tensor, response: Tensor, top: Tensor) -> Tensor:
    try:
        return torch.autograd.grad(z, response, top, retain_graph=True)[0]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ValueError(
            "the network changes in place what a ReLU or a pooling gave, which is needed on the "
            f"way back: have it make a new tensor there ({error})"
        ) from error


def dominant(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Which class responds most at each pixel, and how much (Kumar 2017, Eq. 4 and 5).

    C(x) = argmax_c R(x|c) and D(x) = R(x|C(x)).

    Args:
        responses: R, (B, N, H, W).

    Returns:
        The class map C (B, H, W) int64 and the dominant response D (B, H, W).

    Raises:
        ValueError: NaN or infinite responses.
    """
    response, class_map = responses.max(1)
    if not response.isfinite().all():
        raise ValueError(
            f"the responses {responses.dtype} hold NaN or infinite values: compute them in "
            "float32, from weights and normalised images that are finite"
        )
    return class_map, response


def render(responses: Tensor, hues: Sequence[float]) -> Tensor:
    """The CLEAR map: hue = class, saturation = 1, value = response (Kumar 2017, Eq. 6).

    Hue and value are the dominant class and its response at each pixel (Eq. 4, 5), the value over
    the image's maximum. Negative responses are black, and so is an image without any response.

    Args:
        responses: R, (B, N, H, W).
        hues: one hue in [0, 1) for each of the N classes.

    Returns:
        RGB (B, H, W, 3) in [0, 1].

    Raises:
        ValueError: another number of hues than classes, hues that are none, NaN or infinite
            responses.
    """
    if not all(0 <= hue <= 1 for hue in hues):
        raise ValueError(f"hues {tuple(hues)} must lie in [0, 1)")
    if len(hues) != responses.shape[1]:
        raise ValueError(
            f"{len(hues)} hues for responses of {responses.shape[1]} classes: give one hue for "
            "each class"
        )
    class_map, response = dominant(responses)
    value = response.clamp(min=0)
    highest = value.amax((1, 2), keepdim=True)
    value = value / torch.where(highest > 0, highest, 1)
    hue = torch.tensor(hues, dtype=value.dtype, device=value.device)[class_map][..., None]
    corner = torch.tensor([0.0, 4.0, 2.0], dtype=value.dtype, device=value.device)
    return value[..., None] * (((6 * hue + corner) % 6 - 3).abs() - 1).clamp(0, 1)
