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
"""

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lib import cam

RULES = {"linear": (False, False), "deconvnet": (False, True), "gated": (True, False), "guided": (True, True)}
DIGIT_HUES = tuple(digit / 10 for digit in range(10))
GRADE_HUES = (0.60, 0.44, 0.15, 0.06, 0.87)

_RELUS = {functional.relu, torch.relu, torch.Tensor.relu}
_RELUS_IN_PLACE = {functional.relu_, torch.relu_, torch.Tensor.relu_}
_UNREADABLE = {
    functional.leaky_relu, functional.elu, functional.selu, functional.celu, functional.gelu, functional.silu,
    functional.mish, functional.prelu, functional.rrelu, functional.hardtanh, functional.relu6, functional.hardswish,
    functional.hardsigmoid, functional.softplus, functional.sigmoid, functional.softmax, functional.log_softmax,
    functional.tanh, torch.sigmoid, torch.tanh, torch.softmax, torch.log_softmax, torch.clamp, torch.clamp_min,
    torch.Tensor.sigmoid, torch.Tensor.tanh, torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.clamp,
    torch.Tensor.clamp_min, torch.Tensor.clamp_, torch.maximum, torch.where, torch.nn.functional.layer_norm,
}  # fmt: skip


class _ReLU(torch.autograd.Function):
    """max(a, 0) forwards; on the way back one of the four rules."""

    @staticmethod
    def forward(ctx, a, gate, rectify):
        ctx.rectify = rectify
        ctx.save_for_backward(*((a > 0,) if gate else ()))
        return a.clamp(min=0)

    @staticmethod
    def backward(ctx, response):
        if ctx.rectify:
            response = response.clamp(min=0)
        return (response * ctx.saved_tensors[0] if ctx.saved_tensors else response), None, None


class _Reading(TorchFunctionMode):
    """Within this context every ReLU, as a module or a function, in place or not, used once or often, obeys `rule`.

    The network itself is not touched. A non-linearity for which the four readings are not defined raises ValueError.
    """

    def __init__(self, rule):
        super().__init__()
        self.rule = RULES[rule]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _RELUS or func in _RELUS_IN_PLACE:
            a = args[0] if args else kwargs["input"]
            rectified = _ReLU.apply(a, *self.rule)
            in_place = func in _RELUS_IN_PLACE or kwargs.get("inplace") or args[1:] == (True,)
            return a.copy_(rectified) if in_place else rectified
        if func in _UNREADABLE:
            raise ValueError(f"the network calls {func.__name__}, for which no reading of Eq. 3 is defined: attentive "
                             "responses need convolutions, ReLUs, pooling and a globally averaged head")  # fmt: skip
        return func(*args, **kwargs)


def attentive_responses(network, images, relu="guided", classes=None):
    """R(x|c), each class kernel's response projected back to the input (Kumar 2017, Eq. 3).

    What enters at the top is max(z_L^c, 0), a class kernel's evidence *for* its class; what arrives at the input is
    summed over the image's channels. Works in any gradient mode; changes neither the network nor its gradients.

    images   (B, C, H, W) float, normalised as the network was trained
    relu     "linear", "deconvnet", "gated" or "guided": the reading of Eq. 3 at a ReLU (see the module's table)
    classes  class indices, None for all
    Returns scores (B, N) and responses (B, len(classes) or N, H, W).
    Raises ValueError for an unknown reading, a class out of range, a network without a global-average-pooled head
    or with a non-linearity other than ReLU.
    """
    if relu not in RULES:
        raise ValueError(f"relu is {relu!r}; the readings of Eq. 3 are {', '.join(map(repr, RULES))}")
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        scores, _, z = cam.forward(network, x, _Reading(relu))
        top = z.detach().clamp(min=0)
        responses = []
        for c in cam.chosen(classes, z.shape[1]):
            (response,) = torch.autograd.grad(z[:, c], x, top[:, c], retain_graph=True)
            responses.append(response.sum(1))
    return scores.detach(), torch.stack(responses, 1)


def dominant(responses):
    """Which class responds most at each pixel, and how much (Kumar 2017, Eq. 4 and 5).

    C(x) = argmax_c R(x|c) and D(x) = R(x|C(x)). Takes responses (B, N, H, W), returns class_map (B, H, W) int64 and
    response (B, H, W).
    """
    response, class_map = responses.max(1)
    return class_map, response


def render(class_map, response, hues):
    """The CLEAR map: hue = class, saturation = 1, value = response (Kumar 2017, Eq. 6), as RGB (B, H, W, 3) in [0, 1].

    class_map (B, H, W) int64, response (B, H, W); each image's value is its response over the image's maximum,
    negative responses are black, and so is an image without any response. `hues` has one hue in [0, 1) for each class.
    Raises ValueError for fewer hues than classes.
    """
    if class_map.max() >= len(hues):
        raise ValueError(
            f"class {class_map.max().item()} has no hue: {len(hues)} hues given, one for each class needed"
        )
    value = response.clamp(min=0)
    value = value / value.amax((1, 2), keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)
    hue = torch.tensor(hues, dtype=value.dtype, device=value.device)[class_map][..., None]
    corner = torch.tensor([0.0, 4.0, 2.0], dtype=value.dtype, device=value.device)
    return value[..., None] * (((6 * hue + corner) % 6 - 3).abs() - 1).clamp(0, 1)
