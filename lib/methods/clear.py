"""CLass-Enhanced Attentive Response: Kumar, Wong, Taylor 2017, section 3.

The response z_L^c of each class kernel c in the last convolutional layer L is projected back to the input,

    R(x|c) = G_1 U_1 G_2 U_2 ... G_{L-1} U_{L-1} G_L^c z_L        (Eq. 3)

with G_l the transposed convolution with layer l's kernels and U_l the unpooling to the positions of the maxima.
Eq. 3 is silent on what happens at a ReLU on the way back. With a the ReLU's input and R what arrives there:

| relu        | passes on             | known as                                                 |
|-------------|-----------------------|----------------------------------------------------------|
| "linear"    | R                     | Eq. 3 to the letter                                      |
| "deconvnet" | max(R, 0)             | deconvolutional network, Zeiler and Fergus 2014          |
| "gated"     | R where a > 0         | gradient times response, Simonyan et al. 2014            |
| "guided"    | max(R, 0) where a > 0 | guided backpropagation, Springenberg et al. 2015         |

A leaky ReLU of slope s has s R where the table has 0.

Notebook 02 measures CLEAR's Table 1 for each. On MNIST "deconvnet" comes within 0.02 of the paper's accuracies in both
recorded runs, so it is the likeliest to have been the paper's; but hardly more of its response is for the true class
than by chance. The default here is "guided", whose responses are most for the true class, and lie most on lesions
(notebook 05).
"""

import re

import torch
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from lib.methods import cam

RULES = {
    "linear": (False, False),
    "deconvnet": (False, True),
    "gated": (True, False),
    "guided": (True, True),
}
DIGIT_HUES = tuple(digit / 10 for digit in range(10))
GRADE_HUES = (0.60, 0.44, 0.15, 0.06, 0.87)
PIXELS = 80_000  # to hold at a time

aten = torch.ops.aten

UNREADABLE = (
    "no reading of Eq. 3 is defined for {}, which this network computes with its responses: attentive responses need "
    "convolutions, (leaky) ReLUs, pooling, batch normalisation and a globally averaged head"
)
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne", "sign", "heaviside"}
# Steps on the way back, by autograd's names, that project a response linearly: G_l, U_l and what moves or adds maps.
_LINEAR = {
    "Convolution", "SlowConvDilated2D", "Addmm", "Mm", "Bmm", "T", "MaxPool2DWithIndices", "MaxPool2D",
    "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D", "Mean", "Sum", "NativeBatchNorm", "CudnnBatchNorm",
    "MiopenBatchNorm", "Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Cat", "Stack", "View", "UnsafeView",
    "ReshapeAlias", "Squeeze", "Unsqueeze", "Permute", "Transpose", "Expand", "Slice", "Select", "Split",
    "SplitWithSizes", "Unbind", "Index", "IndexSelect", "AsStrided", "Clone", "ToCopy", "CopySlices", "Copy",
    "ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle",
    "UpsampleNearest2D", "UpsampleBilinear2D", "Alias",
    "_ReLU", "_MaxPool", "_BatchNorm", "_FirstConvolution", "AccumulateGrad",
}  # fmt: skip
_PRODUCTS = {"Convolution", "SlowConvDilated2D", "Addmm", "Mm", "Bmm", "Mul", "Div"}


def _scratch(ctx, like):
    """One buffer on the way back for all classes: fetching fresh memory for each costs up to a third of the time."""
    if not hasattr(ctx, "scratch"):
        ctx.scratch = torch.empty_like(like)
    return ctx.scratch


class _ReLU(torch.autograd.Function):
    """max(a, slope * a) forwards; on the way back one of the four rules."""

    @staticmethod
    def forward(ctx, a, slope, gate, rectify):
        ctx.slope, ctx.gate, ctx.rectify = slope, gate, rectify
        rectified = functional.leaky_relu(a, slope) if slope else a.clamp(min=0)
        if gate:
            ctx.save_for_backward(rectified)
        return rectified

    @staticmethod
    def backward(ctx, R):
        if ctx.gate:
            passed, (rectified,) = _scratch(ctx, R), ctx.saved_tensors
            aten.leaky_relu_backward.grad_input(R, rectified, ctx.slope, True, grad_input=passed)
            R = passed
        if ctx.rectify:
            R = aten.leaky_relu.out(R, ctx.slope, out=_scratch(ctx, R))
        return R, None, None, None


class _MaxPool(torch.autograd.Function):
    """The maxima forwards, U_l back."""

    @staticmethod
    def forward(ctx, a, *options):
        maxima, where = functional.max_pool2d(a, *options, return_indices=True)
        ctx.save_for_backward(a, where)
        ctx.options = [option if isinstance(option, bool) else _pair(option) for option in options]
        return maxima

    @staticmethod
    def backward(ctx, R):
        a, where = ctx.saved_tensors
        back, out = aten.max_pool2d_with_indices_backward.grad_input, _scratch(ctx, a)
        return back(R, a, *ctx.options, where, grad_input=out), *[None] * len(ctx.options)


class _BatchNorm(torch.autograd.Function):
    """Normalised by running statistics, so that every kernel is scaled."""

    @staticmethod
    def forward(ctx, a, mean, variance, weight, bias, eps):
        scale = (variance + eps).rsqrt()
        ctx.scale = (scale if weight is None else scale * weight).to(a.dtype)[:, None, None]
        return functional.batch_norm(a, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, R):
        return torch.mul(R, ctx.scale, out=_scratch(ctx, R)), *[None] * 5


class _FirstConvolution(torch.autograd.Function):
    """The convolution that sees the image. G_1, summed over the image's channels, has its kernels summed over them."""

    @staticmethod
    def forward(ctx, response, image, weight, bias, stride, padding, dilation, groups):
        ctx.save_for_backward(weight)
        ctx.size, ctx.options = image.shape[2:], (stride, padding, dilation)
        z = functional.conv2d(image, weight, bias, stride, padding, dilation, groups)
        return z.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx, R):
        (weight,), (stride, padding, dilation) = ctx.saved_tensors, ctx.options
        sides = zip(ctx.size, R.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        rest = [size - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for size, n, k, s, p, d in sides]
        summed = weight.sum(1, keepdim=True)
        return functional.conv_transpose2d(R, summed, None, stride, padding, rest, 1, dilation), *[
            None
        ] * 7


class _Reading(TorchFunctionMode):
    """Within this context every ReLU, as a module or a function, in place or not, used once or often, obeys `rule`.

    The network itself is not touched. `response` (B, 1, H, W), zeros, is what to differentiate by: it is added to all
    channels of `image`, so that what arrives there is summed over them.
    """

    def __init__(self, rule, images):
        super().__init__()
        self.rule, self.plain = RULES[rule], images.contiguous(memory_format=torch.channels_last)
        self.response = torch.zeros_like(images[:, :1], requires_grad=True)
        self.image = self.plain + self.response

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ("relu", "relu_", "leaky_relu", "leaky_relu_"):
            return self.rectify(name, *args, **kwargs)
        if func is functional.max_pool2d:
            return self.max_pool2d(*args, **kwargs)
        if func is functional.batch_norm:
            return self.batch_norm(*args, **kwargs)
        if func is torch.conv2d:
            return self.conv2d(*args, **kwargs)
        if name in _COMPARISONS and any(torch.is_tensor(a) and a.grad_fn for a in args):
            raise ValueError(UNREADABLE.format(name))
        return func(*args, **kwargs)

    def rectify(self, name, input, *options, **named):
        leaky = name.startswith("leaky")
        named |= zip(
            ("negative_slope", "inplace") if leaky else ("inplace",), options, strict=False
        )
        rectified = _ReLU.apply(
            input, named.get("negative_slope", 0.01) if leaky else 0, *self.rule
        )
        return input.copy_(rectified) if name.endswith("_") or named.get("inplace") else rectified

    def max_pool2d(
        self,
        input,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode=False,
        return_indices=False,
    ):
        options = kernel_size, stride or kernel_size, padding, dilation, ceil_mode
        return (
            functional.max_pool2d(input, *options, True)
            if return_indices
            else _MaxPool.apply(input, *options)
        )

    def batch_norm(
        self, input, mean, variance, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        if training:
            return functional.batch_norm(
                input, mean, variance, weight, bias, training, momentum, eps
            )
        return _BatchNorm.apply(input, mean, variance, weight, bias, eps)

    def conv2d(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        if input is not self.image or isinstance(padding, str):
            return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
        options = _pair(stride), _pair(padding), _pair(dilation), groups
        return _FirstConvolution.apply(self.response, self.plain, weight, bias, *options)


def _check(z, response):
    """Raise ValueError where a step on the way from z back to `response` is not one that Eq. 3 can read."""
    users, stack = {}, [z.grad_fn]
    while stack:
        node = stack.pop()
        for below in {below for below, _ in node.next_functions if below is not None}:
            if below not in users:
                users[below] = []
                stack.append(below)
            users[below].append(node)
    way, stack = set(), [torch.autograd.graph.get_gradient_edge(response).node]
    while stack:
        node = stack.pop()
        if node not in way:
            way.add(node)
            stack += users.get(node, [])
    for node in way:
        name = re.sub(r"Backwards?\d*$", "", node.name().removeprefix("torch::autograd::"))
        factors = [below in way for below, _ in node.next_functions]
        product = name in _PRODUCTS and (sum(factors) > 1 or (name == "Div" and factors[-1]))
        if name not in _LINEAR or product or getattr(node, "_saved_training", False):
            raise ValueError(UNREADABLE.format(name))


def attentive_responses(network, images, relu="guided", classes=None, chunk=None):
    """R(x|c), each class kernel's response projected back to the input (Kumar 2017, Eq. 3).

    What enters at the top is max(z_L^c, 0), a class kernel's evidence *for* its class; what arrives at the input is
    summed over the image's channels. One forward pass serves all classes; a class kernel that responds nowhere costs
    nothing. Works in any gradient mode; changes neither the network nor its gradients.

    images   (B, C, H, W) float, normalised as the network was trained
    relu     "linear", "deconvnet", "gated" or "guided": the reading of Eq. 3 at a ReLU (see the module's table)
    classes  class indices, None for all
    chunk    images to hold at a time; None for about 80,000 pixels, which a processor's cache likes and which keeps
             10,000 MNIST images and a 1024x1024 photograph below 2 GB
    Returns scores (B, N) and responses (B, len(classes) or N, H, W).
    Raises ValueError for an unknown reading, a class out of range, a chunk below 1, images as `cam.forward`, a network
    without a global-average-pooled head or with a step between image and head that is neither linear nor a (leaky)
    ReLU, as a sigmoid, layer normalisation or an attention.
    """
    if relu not in RULES:
        raise ValueError(
            f"relu is {relu!r}; the readings of Eq. 3 are {', '.join(map(repr, RULES))}"
        )
    cam.check(images)
    chunk = max(1, PIXELS // images[0, 0].numel()) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least 1 image at a time, or None")
    parts = [_responses(network, part, relu, classes) for part in images.detach().split(chunk)]
    scores, responses = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(responses)


def _responses(network, images, relu, classes):
    with torch.inference_mode(False), torch.enable_grad():
        reading = _Reading(relu, images)
        scores, _, z = cam.forward(network, reading.image, reading)
        _check(z, reading.response)
        wanted, top = cam.chosen(classes, z.shape[1]), z.detach().clamp(min=0)
        responses = images.new_zeros(len(images), len(wanted), *images.shape[2:])
        for i, c in enumerate(wanted):
            if top[:, c].any():
                (response,) = torch.autograd.grad(
                    z[:, c], reading.response, top[:, c], retain_graph=True
                )
                responses[:, i] = response[:, 0]
    return scores.detach(), responses


def dominant(responses):
    """Which class responds most at each pixel, and how much (Kumar 2017, Eq. 4 and 5).

    C(x) = argmax_c R(x|c) and D(x) = R(x|C(x)). Takes responses (B, N, H, W), returns class_map (B, H, W) int64 and
    response (B, H, W).
    """
    response, class_map = responses.max(1)
    return class_map, response


def render(responses, hues):
    """The CLEAR map: hue = class, saturation = 1, value = response (Kumar 2017, Eq. 6), as RGB (B, H, W, 3) in [0, 1].

    Takes responses (B, N, H, W) and one hue in [0, 1) for each of the N classes. Hue and value are the dominant class
    and its response at each pixel (Eq. 4, 5), the value over the image's maximum; negative responses are black, and so
    is an image without any response. Raises ValueError for another number of hues than classes.
    """
    if len(hues) != responses.shape[1]:
        raise ValueError(
            f"{len(hues)} hues for responses of {responses.shape[1]} classes: give one hue for each class"
        )
    class_map, response = dominant(responses)
    value = response.clamp(min=0)
    value = value / value.amax((1, 2), keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)
    hue = torch.tensor(hues, dtype=value.dtype, device=value.device)[class_map][..., None]
    corner = torch.tensor([0.0, 4.0, 2.0], dtype=value.dtype, device=value.device)
    return value[..., None] * (((6 * hue + corner) % 6 - 3).abs() - 1).clamp(0, 1)
