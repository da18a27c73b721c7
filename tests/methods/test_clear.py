"""lib.methods.clear against a network computed by hand, Eq. 3 transcribed literally, and Captum."""

import colorsys
import contextlib
import copy
import itertools
import subprocess
import sys

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision import models

from lib.learning.networks import AllConvNet
from lib.methods import clear


def random_network(*arguments):
    """An AllConvNet whose class kernels and normalisation, too, are random, and that responds
    somewhere."""
    network = AllConvNet(*arguments, normalised=True)
    for layer in network.features:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    nn.init.normal_(network.head.weight)
    nn.init.normal_(network.head.bias, mean=1)
    return network


class Tiny(nn.Module):
    """1x1 convolutions on a 1x2 image, so that every number below can be followed by hand."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(2, 2, 1, bias=False)
        self.first.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
        self.head.weight.data = torch.tensor([[3.0, -1.0], [-1.0, 2.0]]).view(2, 2, 1, 1)

    def forward(self, images):
        return self.head(self.relu(self.first(images))).mean((2, 3))


# image x = (2, -1). first: a = (2, -1) and (-4, 2). ReLU: (2, 0) and (0, 2).
# head: z_0 = 3*(2, 0) - (0, 2) = (6, -2), z_1 = -(2, 0) + 2*(0, 2) = (-2, 4). Rectified: (6, 0) and
# (0, 4).
# back through the head, class 0: (18, 0) and (-6, 0); class 1: (0, -4) and (0, 8).
# through first with weights 1 and -2 after the rule: sums of 1*R_0 - 2*R_1.
BY_HAND = {
    "linear": [[18.0 + 12.0, 0.0], [0.0, -4.0 - 16.0]],
    "deconvnet": [[18.0, 0.0], [0.0, -16.0]],
    "gated": [[18.0, 0.0], [0.0, -16.0]],
    "guided": [[18.0, 0.0], [0.0, -16.0]],
}


@pytest.mark.parametrize("relu", clear.RULES)
def test_a_network_of_two_layers_gives_the_numbers_computed_by_hand(relu):
    scores, responses = clear.attentive_responses(Tiny(), torch.tensor([[[[2.0, -1.0]]]]), relu)
    assert scores.tolist() == [[2.0, 1.0]]
    assert responses[0, :, 0].tolist() == BY_HAND[relu]


# The four rules differ where a and R differ in sign: x = (2, 1), a = (2, 1), (-4, -2); ReLU: (2,
# 1), (0, 0);
# z_0 = (6, 3), z_1 = (-2, -1). Class 0 back through the head: (18, 9) and (-6, -3).
@pytest.mark.parametrize(
    "relu, expected", [("linear", [30.0, 15.0]), ("deconvnet", [18.0, 9.0]), ("gated", [18.0, 9.0])]
)
def test_a_closed_gate_lets_a_negative_response_through_only_when_linear(relu, expected):
    _, responses = clear.attentive_responses(Tiny(), torch.tensor([[[[2.0, 1.0]]]]), relu)
    assert responses[0, 0, 0].tolist() == expected
    assert responses[0, 1].tolist() == [[0.0, 0.0]]


RULE_AT_A_RELU = {  # a, R, what is passed on; the module's table
    "linear": [(2, 5, 5), (-1, 7, 7), (3, -4, -4), (-2, -6, -6)],
    "deconvnet": [(2, 5, 5), (-1, 7, 7), (3, -4, 0), (-2, -6, 0)],
    "gated": [(2, 5, 5), (-1, 7, 0), (3, -4, -4), (-2, -6, 0)],
    "guided": [(2, 5, 5), (-1, 7, 0), (3, -4, 0), (-2, -6, 0)],
}


class OneReLU(nn.Module):
    """A response of `weight`/2 arrives at a ReLU that got the image; `other` makes z positive
    whatever the image is."""

    def __init__(self, weight):
        super().__init__()
        self.head = nn.Conv2d(2, 1, 1, bias=False)
        self.head.weight.data = torch.tensor([weight, 1.0]).view(1, 2, 1, 1)

    def forward(self, images):
        return self.head(torch.cat([F.relu(images[:, :1]), images[:, 1:]], 1)).mean((2, 3))


@pytest.mark.parametrize("relu", clear.RULES)
def test_each_rule_passes_on_what_the_table_says(relu):
    for a, arriving, passed in RULE_AT_A_RELU[relu]:
        image = torch.tensor([float(a), 1000.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
        z = float(arriving) * max(a, 0) + 1000
        _, response = clear.attentive_responses(OneReLU(float(arriving)), image, relu)
        assert response[0, 0, 0, 0].item() == pytest.approx(z * (passed + 1))


def transcribed(network, x, c, relu):
    """Eq. 3, literally: conv_transpose2d for G, max_unpool2d for U. Batch normalisation scales each
    kernel."""
    rules = {
        "linear": lambda R, a: R,
        "deconvnet": lambda R, a: R.clamp(min=0),
        "gated": lambda R, a: R * (a > 0),
        "guided": lambda R, a: R.clamp(min=0) * (a > 0),
    }
    a, s = [], []
    kernels, biases = [], []
    for convolution, norm in zip(network.features[0::4], network.features[1::4], strict=True):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        kernels.append(convolution.weight * scale[:, None, None, None])
        biases.append(norm.bias - norm.running_mean * scale)
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        if i:
            x, where = F.max_pool2d(x, 2, return_indices=True)
            s.append(where)
        a.append(F.conv2d(x, kernel, bias, padding=1))
        x = a[-1].clamp(min=0)
    z = F.conv2d(x, network.head.weight, network.head.bias)
    R = F.conv_transpose2d(z[:, [c]].clamp(min=0), network.head.weight[[c]])
    for i in reversed(range(len(kernels))):
        R = F.conv_transpose2d(rules[relu](R, a[i]), kernels[i], padding=1)
        R = F.max_unpool2d(R, s[i - 1], 2) if i else R
    return R.sum(1)


@pytest.mark.parametrize("relu", clear.RULES)
def test_random_networks_agree_with_a_literal_transcription_of_equation_3(relu):
    for seed in range(3):
        torch.manual_seed(seed)
        network = random_network(4, 3, (5, 6, 7)).double()
        images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
        _, responses = clear.attentive_responses(network, images, relu)
        for c in range(4):
            with torch.no_grad():
                expected = transcribed(network, images, c, relu)
            assert expected.abs().max() > 0
            torch.testing.assert_close(responses[:, c], expected, rtol=1e-10, atol=1e-12)


class HalfSquare(nn.Module):
    """Scores whose derivative by z is max(z, 0): lets Captum start from the rectified class kernel
    responses."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        z = self.network.head(self.network.features(images))
        return (0.5 * z * (z > 0) * z).sum((2, 3))


@pytest.mark.parametrize(
    "relu, method",
    [
        ("deconvnet", captum.attr.Deconvolution),
        ("guided", captum.attr.GuidedBackprop),
        ("gated", None),
    ],
)
def test_deconvnet_guided_and_gated_agree_with_captum(relu, method):
    torch.manual_seed(1)
    network = random_network(3, 2, (4, 5, 6)).double().eval()
    images = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    _, responses = clear.attentive_responses(network, images, relu)
    for c in range(3):
        if method:
            expected = method(HalfSquare(network)).attribute(images, target=c)
        else:
            expected = captum.attr.Saliency(HalfSquare(network)).attribute(
                images, target=c, abs=False
            )
        torch.testing.assert_close(responses[:, c], expected.sum(1), rtol=1e-10, atol=1e-12)


class Residual(nn.Module):
    """One in-place ReLU module used twice, a functional ReLU, batch norm, a shortcut added in
    place, a linear head."""

    def __init__(self, inplace):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=inplace)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)
        self.inplace = inplace

    def forward(self, images):
        x = self.relu(self.first(images))
        y = self.norm(self.second(x))
        if self.inplace:
            y += x
        else:
            y = y + x
        y = self.relu(y)
        y = F.relu(y - 0.2, inplace=self.inplace)
        return self.head(self.pool(y).flatten(1))


@pytest.mark.parametrize("relu", clear.RULES)
def test_in_place_and_shared_and_functional_relus_obey_the_rule_like_any_other(relu):
    torch.manual_seed(2)
    plain, in_place = Residual(False), Residual(True)
    in_place.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 8, 8)
    _, expected = clear.attentive_responses(plain, images, relu)
    _, responses = clear.attentive_responses(in_place, images, relu)
    torch.testing.assert_close(responses, expected)
    readings = [
        clear.attentive_responses(plain, images, other)[1] for other in clear.RULES if other != relu
    ]
    assert not any(torch.allclose(expected, reading) for reading in readings)


def test_the_gated_reading_of_a_residual_network_is_the_gradient_of_half_the_squared_response():
    torch.manual_seed(3)
    network = Residual(False).double().eval()
    images = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    y = network.relu(
        network.norm(network.second(network.relu(network.first(images))))
        + network.relu(network.first(images))
    )
    z = (
        torch.einsum("nk,bkhw->bnhw", network.head.weight, F.relu(y - 0.2))
        + network.head.bias[:, None, None]
    )
    _, responses = clear.attentive_responses(network, images.detach(), "gated")
    for c in range(3):
        (gradient,) = torch.autograd.grad(
            0.5 * (z[:, c].clamp(min=0) ** 2).sum(), images, retain_graph=True
        )
        torch.testing.assert_close(responses[:, c], gradient.sum(1))


class Literal(torch.autograd.Function):
    """A (leaky) ReLU with the module's table written out; put in the place of a network's ReLU
    modules."""

    @staticmethod
    def forward(ctx, a, slope, relu):
        ctx.save_for_backward(a)
        ctx.slope, ctx.relu = slope, relu
        return torch.where(a > 0, a, slope * a)

    @staticmethod
    def backward(ctx, R):
        (a,) = ctx.saved_tensors
        if ctx.relu in ("gated", "guided"):
            R = torch.where(a > 0, R, ctx.slope * R)
        if ctx.relu in ("deconvnet", "guided"):
            R = torch.where(R > 0, R, ctx.slope * R)
        return R, None, None


class LiteralReLU(nn.Module):
    def __init__(self, slope, relu):
        super().__init__()
        self.slope, self.relu = slope, relu

    def forward(self, a):
        return Literal.apply(a, self.slope, self.relu)


def with_literal_relus(network, relu):
    network = copy.deepcopy(network)
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(parent, name, LiteralReLU(getattr(child, "negative_slope", 0.0), relu))
    return network


def by_replaced_modules(network, images, relu, layer, head):
    """All R(x|c): from the maps that `layer` returns, and `head`'s weights taken as 1x1 kernels."""
    network, maps = with_literal_relus(network, relu), []
    network.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: maps.append(output)
    )
    x, head = images.clone().requires_grad_(), network.get_submodule(head)
    network.eval()(x)
    z = F.conv2d(maps[0], head.weight.flatten(1)[:, :, None, None], head.bias)
    top = z.detach().clamp(min=0)
    found = [
        torch.autograd.grad(z[:, c], x, top[:, c], retain_graph=True)[0].sum(1)
        for c in range(z.shape[1])
    ]
    return torch.stack(found, 1)


def ending(channels, classes=4):
    return nn.Conv2d(channels, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()


class Shortcuts(nn.Module):
    """A shortcut around a block, two branches put side by side, and average pooling between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.relu, self.branch = nn.ReLU(), nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU())
        self.pool, self.head = nn.AvgPool2d(2), nn.Conv2d(10, 4, 1)

    def forward(self, images):
        x = self.stem(images)
        x = self.relu(self.block(x) + x)
        self.maps = torch.cat([self.pool(x), self.branch(self.pool(x))], 1)
        return self.head(self.maps).mean((2, 3))


class Dense(models.DenseNet):
    """torchvision's, but with its last ReLU as a module, so that it can be replaced."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.last = nn.ReLU()

    def forward(self, images):
        return self.classifier(self.last(self.features(images)).mean((2, 3)))


ZOO = {
    "strided": lambda: (
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 4, stride=3, padding=1),
        nn.ReLU(),
    ),
    "dilated": lambda: (
        nn.Conv2d(3, 6, 3, dilation=2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, dilation=(1, 2)),
        nn.ReLU(),
    ),
    "grouped": lambda: (
        nn.Conv2d(3, 6, 3, groups=3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ReLU(),
    ),
    "oblong": lambda: (
        nn.Conv2d(3, 6, (5, 2), (3, 2), (2, 0)),
        nn.ReLU(),
        nn.Conv2d(6, 8, (1, 3)),
        nn.ReLU(),
    ),
    "same": lambda: (
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(6, 8, 4, padding="same"),
        nn.ReLU(),
    ),
    "reflected": lambda: (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
    "normalised": lambda: (nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    "average": lambda: (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "maximum": lambda: (
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Dropout2d(),
    ),
    "leaky": lambda: (nn.Conv2d(3, 6, 3), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 3), nn.LeakyReLU()),
    "leaky, in place": lambda: (
        nn.Conv2d(3, 6, 3),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(True),
    ),
}


def exotic(name):
    """A network, and the names of the layer with the last maps and of the head."""
    torch.manual_seed(8)
    if name == "squeezenet1_1":
        network, layer, head = models.squeezenet1_1(num_classes=4), "classifier.0", "classifier.1"
    elif name == "resnet18":
        network, layer, head = models.resnet18(num_classes=4), "layer4", "fc"
    elif name == "densenet":
        network, layer, head = Dense(8, (2, 2), 16, num_classes=4), "last", "classifier"
    elif name == "shortcuts":
        network, layer, head = Shortcuts(), "head", "head"
        network.head = nn.Sequential(nn.Identity(), nn.Conv2d(10, 4, 1))
        layer, head = "head.0", "head.1"
    else:
        layers = ZOO[name]()
        network = nn.Sequential(*layers, *ending(8))
        layer, head = str(len(layers) - 1), str(len(layers))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(
                module.weight, -1, 1.5
            )  # negative, too: then gate and response change sign
            nn.init.normal_(module.bias)
    nn.init.normal_(network.get_submodule(head).weight)
    nn.init.ones_(network.get_submodule(head).bias)  # so that every class responds somewhere
    return network.double(), layer, head


@pytest.mark.parametrize("relu", clear.RULES)
@pytest.mark.parametrize("name", [*ZOO, "shortcuts", "squeezenet1_1", "resnet18", "densenet"])
def test_every_kind_of_layer_agrees_with_modules_that_are_replaced_by_the_table_written_out(
    name, relu
):
    network, layer, head = exotic(name)
    images = torch.randn(
        2, 3, *((75, 68) if name in ("squeezenet1_1", "resnet18", "densenet") else (17, 15))
    ).double()
    expected = by_replaced_modules(network, images, relu, layer, head)
    _, responses = clear.attentive_responses(network, images, relu)
    assert expected.abs().max() > 0
    torch.testing.assert_close(
        responses, expected, rtol=1e-9, atol=1e-11 * expected.abs().max().item()
    )


def state(network):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in network.modules()
    ]
    flags = [(m.training, sorted(vars(m))) for m in network.modules()]
    return hooks, flags, [(p.requires_grad, p.grad) for p in network.parameters()]


@pytest.mark.parametrize("relu", ["guided", "no such reading"])
def test_the_network_is_left_as_it_was_also_when_something_raises(relu):
    torch.manual_seed(4)
    network = Residual(True)
    network.norm.eval()
    network.first.weight.requires_grad_(False)
    before, weights = state(network), {k: v.clone() for k, v in network.state_dict().items()}
    images = torch.randn(2, 1, 8, 8)
    image_before = images.clone()
    if relu == "guided":
        clear.attentive_responses(network, images, relu)
    else:
        with pytest.raises(ValueError, match="'linear', 'deconvnet', 'gated', 'guided'"):
            clear.attentive_responses(network, images, relu)
        with pytest.raises(ValueError, match="out of range"):
            clear.attentive_responses(network, images, classes=[3])
        with pytest.raises(ValueError, match="2 channel"):
            clear.attentive_responses(network, torch.zeros(1, 2, 8, 8))
    assert state(network) == before
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert torch.equal(images, image_before) and not images.requires_grad


def test_scores_and_order_of_the_classes():
    torch.manual_seed(6)
    network, images = random_network(5), torch.rand(3, 1, 28, 28)
    scores, responses = clear.attentive_responses(network, images)
    torch.testing.assert_close(scores, network.eval()(images).detach())
    _, chosen = clear.attentive_responses(network, images, classes=[4, 1])
    assert torch.equal(chosen, responses[:, [4, 1]])


class Hidden(nn.Module):
    """Between two convolutions, `step`: what it does is not to be seen in the modules."""

    def __init__(self, step):
        super().__init__()
        self.first, self.head, self.step = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1), step

    def forward(self, images):
        return self.head(self.step(self.first(images))).mean((2, 3))


UNREADABLE = {
    "gelu": F.gelu,
    "elu": nn.ELU(),
    "sigmoid": torch.sigmoid,
    "hardtanh": nn.Hardtanh(),
    "silu": nn.SiLU(),
    "relu6": F.relu6,
    "prelu": nn.PReLU(),
    "clamp": lambda a: a.clamp(min=0),
    "threshold": nn.Threshold(0.1, 0),
    "maximum": lambda a: torch.maximum(a, torch.zeros(())),
    "where": lambda a: torch.where(a.detach() > 0, a, 0 * a),
    "mask": lambda a: a * (a > 0),
    "square": lambda a: a * a,
    "attention": lambda a: a * a.mean((2, 3), keepdim=True),
    "inverse": lambda a: 1 / a,
    "quotient": lambda a: torch.ones(()) / a,
    "absolute": torch.abs,
    "layer norm": nn.GroupNorm(1, 3),
    "instance norm": nn.InstanceNorm2d(3),
    "local response": nn.LocalResponseNorm(2),
    "unfrozen batch norm": lambda a: F.batch_norm(a, None, None, training=True),
    "power": nn.LPPool2d(2, 2),
    "scripted": torch.jit.trace(F.relu, torch.randn(1)),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("relu", ["gated", "guided"])
def test_a_step_without_a_reading_is_refused_and_never_taken_for_a_plain_gradient(name, relu):
    torch.manual_seed(9)
    network = Hidden(UNREADABLE[name])
    with pytest.raises(ValueError, match=r"no reading of Eq\. 3 is defined for"):
        clear.attentive_responses(network, torch.rand(1, 1, 8, 8), relu)


def part(step):
    """`step`, in place, on the first channel alone."""

    def on_part(a):
        step(a[:, :1])
        return a

    return on_part


def masked(a):
    a[a < 0] = 0
    return a


def filled_mask(a):
    mask = torch.zeros(a.shape)
    mask[a.detach() > 0] = 1
    return a * mask


def cropped(a):
    start = int(a.mean((0, 1, 3)).argmax()) // 2
    return a[:, :, start : start + 3]


IN_PLACE_UNREADABLE = {
    "sigmoid_": torch.sigmoid_,
    "abs_": torch.abs_,
    "clamp_": lambda a: a.clamp_(0, 1),
    "masked_fill_": lambda a: a.masked_fill_(a < 0, 0),
    "masked": masked,
    "square": lambda a: a.mul_(a),
    "ReLU6": nn.ReLU6(inplace=True),
    "part sigmoid_": part(torch.sigmoid_),
    "part abs_": part(torch.abs_),
    "part square": part(lambda a: a.mul_(a)),
    "part power": part(lambda a: a.pow_(2)),
    "part hardtanh": part(lambda a: F.hardtanh(a, 0, 1, inplace=True)),
    "part quotient": part(lambda a: a.div_(a.sum())),
    "part copied": part(lambda a: a.copy_(a.sigmoid())),
    "data": lambda a: (a.data.clamp_(0), a)[1],
    "part of data": lambda a: (a.data[:, :1].clamp_(0), a)[1],
    "data replaced": lambda a: (setattr(a, "data", a.data.abs()), a)[1],
    "detached": lambda a: (a.detach().clamp_(0), a)[1],
    "detach_": lambda a: a.detach_(),
    "no_grad": torch.no_grad()(lambda a: a.clamp_(0)),
    "numpy": lambda a: (np.abs(a.detach().numpy(), out=a.detach().numpy()), a)[1],
}
# What autograd does not see: the answer would depend on the image in a way that is not read.
OUT_OF_SIGHT = {
    "no gradient": torch.no_grad()(lambda a: 2 * a),
    "inference": torch.inference_mode()(lambda a: 2 * a),
    "detached": lambda a: a.detach(),
    "detached gate": lambda a: a * a.mean().sigmoid().detach(),
    "detached mask": lambda a: a * (a.detach() > 0),
    "where": lambda a: torch.where(a > 0, a, torch.zeros_like(a)),
    "number": lambda a: a / a.max().item(),
    "float": lambda a: a * float(a.detach().mean()),
    "index": lambda a: a + a[:, [a.mean((0, 2, 3)).argmax()]],
    "filled mask": filled_mask,
    "cropped": cropped,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", [*IN_PLACE_UNREADABLE, *OUT_OF_SIGHT])
def test_a_step_in_place_or_out_of_autograds_sight_is_refused_as_any_other(name, first):
    torch.manual_seed(9)
    step = {**IN_PLACE_UNREADABLE, **OUT_OF_SIGHT}[name]
    network = Hidden((lambda a: a) if first else step)
    if first:  # the step changes the image itself
        network = nn.Sequential(Called(step), network)
    images = torch.randn(1, 1, 8, 8)
    before = images.clone()
    for frozen in (False, True):
        network.requires_grad_(not frozen)
        with pytest.raises(ValueError, match=r"no reading of Eq\. 3 is defined for"):
            clear.attentive_responses(network, images)
    assert torch.equal(images, before)


class Called(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, a):
        return self.step(a)


def zeroed(a):
    a[:, :1] = 0
    return a


def halved(a):
    a *= 0.5
    a -= 0.1
    return a


IN_PLACE_READABLE = {
    "subtract": (lambda a: a.sub_(0.5), lambda a: a - 0.5),
    "scale": (halved, lambda a: a / 2 - 0.1),
    "ReLU": (nn.ReLU(inplace=True), F.relu),
    "leaky ReLU": (nn.LeakyReLU(0.2, inplace=True), nn.LeakyReLU(0.2)),
    "zero": (zeroed, lambda a: torch.cat([0 * a[:, :1], a[:, 1:]], 1)),
    "part": (part(lambda a: a.mul_(3)), lambda a: torch.cat([3 * a[:, :1], a[:, 1:]], 1)),
    "part ReLU": (part(F.relu_), lambda a: torch.cat([a[:, :1].relu(), a[:, 1:]], 1)),
    "part added": (part(lambda a: a.add_(a * 2)), lambda a: torch.cat([3 * a[:, :1], a[:, 1:]], 1)),
    "logged": (lambda a: (a.detach().mean().clamp_(0), a)[1], lambda a: a),
    "shapes": (lambda a: a + torch.zeros_like(a) + torch.ones(1, 1).type_as(a), lambda a: a + 1),
    "repeated": (lambda a: a.repeat(1, 1, 2, 1), lambda a: torch.cat([a, a], 2)),
}


@pytest.mark.parametrize("relu", clear.RULES)
@pytest.mark.parametrize("name", IN_PLACE_READABLE)
def test_steps_in_place_give_the_responses_of_the_same_steps_out_of_place(name, relu):
    in_place, plain = IN_PLACE_READABLE[name]
    images = torch.randn(2, 3, 9, 9)
    before = images.clone()
    expected, found = [], []
    for step, responses in ((plain, expected), (in_place, found)):
        for where in (0, 1):  # on the image, and on the responses
            torch.manual_seed(3)
            layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), nn.ReLU()]
            network = nn.Sequential(*layers[:where], Called(step), *layers[where:], *ending(3))
            for _ in range(2):
                responses.append(clear.attentive_responses(network, images, relu)[1])
    torch.testing.assert_close(found, expected)
    assert torch.equal(images, before)


def test_a_relus_output_that_is_changed_in_place_is_refused_with_what_to_do():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Called(halved), *ending(4))
    with pytest.raises(ValueError, match="changes in place what a ReLU or a pooling gave"):
        clear.attentive_responses(network, torch.randn(1, 3, 9, 9))


class Dynamic(nn.Module):
    """`of` makes the weights of a step from the image."""

    def __init__(self, step, late):
        super().__init__()
        self.step, self.stem = step, nn.Conv2d(3, 3, 3) if late else nn.Identity()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        a = self.stem(images)
        return self.head(self.step(a, a.mean((0, 2, 3)))).mean((2, 3))


KERNELS = torch.linspace(-1, 1, 81).view(3, 3, 3, 3)
ZEROS, ONES = torch.zeros(3), torch.ones(3)
DYNAMIC = {
    "kernels": lambda a, m: F.conv2d(a, KERNELS * m[:, None, None, None]),
    "bias": lambda a, m: F.conv2d(a, KERNELS, m),
    "mean": lambda a, m: F.batch_norm(a, m, ONES, ONES, ZEROS),
    "variance": lambda a, m: F.batch_norm(a, ZEROS, m * 0 + 1, ONES, ZEROS),
    "weight": lambda a, m: F.batch_norm(a, ZEROS, ONES, m, ZEROS),
    "shift": lambda a, m: F.batch_norm(a, ZEROS, ONES, ONES, m),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", DYNAMIC)
def test_weights_that_are_computed_from_the_image_are_refused_in_any_layer(name, late):
    with pytest.raises(ValueError, match=r"no reading of Eq\. 3.*(Convolution|BatchNorm)"):
        clear.attentive_responses(Dynamic(DYNAMIC[name], late), torch.rand(1, 3, 9, 9))


class Clone(torch.autograd.Function):
    """Called as a step of PyTorch's that has a reading, but it is another."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, R):
        return 2 * R


def test_a_function_of_the_users_own_is_refused_whatever_its_name():
    with pytest.raises(ValueError, match=r"no reading of Eq\. 3 is defined for clone"):
        clear.attentive_responses(Hidden(Clone.apply), torch.rand(1, 1, 8, 8))


class Pooled(nn.Module):
    def __init__(self, pool, scale=1.0):
        super().__init__()
        torch.manual_seed(4)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU())
        self.head, self.pool = nn.Linear(5, 4), pool
        self.head.weight.data *= scale

    def forward(self, images):
        return self.head(self.pool(self.features(images)))


@pytest.mark.parametrize("relu", clear.RULES)
def test_where_maps_are_summed_responses_are_those_of_the_average_of_larger_kernels(relu):
    """25 places: sum w f + b is mean (25 w) f + b, and R is quadratic in the last kernels."""
    images = torch.randn(2, 3, 9, 9)
    summed = Pooled(lambda f: f.sum((2, 3)))
    scores, responses = clear.attentive_responses(summed, images, relu)
    averaged = Pooled(lambda f: f.mean((2, 3)), 25.0)
    expected_scores, expected = clear.attentive_responses(averaged, images, relu)
    torch.testing.assert_close(scores, expected_scores)
    torch.testing.assert_close(25**2 * responses, expected, rtol=1e-4, atol=1e-4)


class Checkpointed(Pooled):
    def __init__(self, reentrant):
        super().__init__(lambda f: f.mean((2, 3)))
        self.reentrant = reentrant

    def forward(self, images):
        for layers in self.features[:2], self.features[2:]:
            images = checkpoint(layers, images, use_reentrant=self.reentrant)
        return self.head(self.pool(images))


def average():
    return Pooled(lambda f: f.mean((2, 3)))


DRESSED = {
    "checkpoint": lambda: Checkpointed(False),
    "reentrant checkpoint": lambda: Checkpointed(True),
    "compiled": lambda: torch.compile(average(), backend="eager"),
    "DataParallel": lambda: nn.DataParallel(average()),
}


@pytest.mark.parametrize("relu", clear.RULES)
@pytest.mark.parametrize("name", DRESSED)
def test_a_checkpointed_compiled_or_parallel_network_has_the_responses_of_the_network_itself(
    name, relu
):
    images = torch.randn(2, 3, 9, 9)
    expected = clear.attentive_responses(average(), images, relu)
    found = clear.attentive_responses(DRESSED[name](), images, relu)
    torch.testing.assert_close(found, expected)


def test_a_scripted_part_is_refused_since_its_relus_cannot_be_seen():
    network = average()
    network.features = torch.jit.script(network.features)
    with pytest.raises(ValueError, match=r"Pooled's part features is compiled by torch\.jit"):
        clear.attentive_responses(network, torch.randn(2, 3, 9, 9))


def test_a_head_called_twice_is_refused():
    network = average()
    twice = Hidden(None)
    twice.forward = lambda x: (network(x) + network(x.flip(3))) / 2
    with pytest.raises(ValueError, match="more than once"):
        clear.attentive_responses(twice, torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("relu", clear.RULES)
def test_autocast_gives_the_responses_to_its_precision(relu, within):
    images = torch.randn(2, 3, 24, 24)
    _, expected = clear.attentive_responses(average(), images, relu)
    autocast, network = torch.autocast("cpu", torch.bfloat16), average()
    if within:
        network.forward = autocast(network.forward)
    with contextlib.nullcontext() if within else autocast:
        _, responses = clear.attentive_responses(network, images, relu)
    assert responses.dtype == torch.float32
    assert F.cosine_similarity(responses.flatten(1), expected.flatten(1)).min() > 0.99


def test_responses_that_overflow_are_an_error_that_names_the_precision():
    network, images = average(), torch.rand(2, 3, 9, 9) + 1
    for layer in (network.features[0], network.features[2], network.head):
        layer.weight.data = layer.weight.data.abs() * 10
    scores, responses = clear.attentive_responses(network, images)
    assert 1e3 < scores.max() < 6e4 and responses.max() > 1e5
    with pytest.raises(ValueError, match=r"responses hold NaN.*torch\.float16 overflows.*bfloat16"):
        clear.attentive_responses(network.half(), images.half())
    _, rounded = clear.attentive_responses(network.bfloat16(), images.bfloat16())
    assert F.cosine_similarity(rounded.float().flatten(1), responses.flatten(1)).min() > 0.99


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_nan_and_infinite_responses_are_refused_and_not_drawn(wrong):
    responses = torch.rand(2, 3, 4, 4)
    responses[1, 2, 3, 0] = wrong
    for draw in (clear.dominant, lambda R: clear.render(R, (0.1, 0.5, 0.7))):
        with pytest.raises(ValueError, match=r"responses torch\.float32 hold NaN or infinite"):
            draw(responses)
    with pytest.raises(ValueError, match=r"hues \(0\.1, nan, 0\.7\) must lie in"):
        clear.render(torch.rand(1, 3, 4, 4), (0.1, torch.nan, 0.7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_smallest_and_the_largest_responses_of_a_precision_are_drawn(dtype):
    for value in (torch.finfo(dtype).smallest_normal / 4, torch.finfo(dtype).max):
        responses = torch.tensor([[[[value, value / 2, 0]], [[0, 0, 0]]]], dtype=dtype)
        rendered = clear.render(responses, (0, 0.5))
        torch.testing.assert_close(
            rendered[0, 0, :, 0], torch.tensor([1, 0.5, 0], dtype=dtype), rtol=2e-2, atol=0
        )


LINEAR = {
    "normalise": lambda a: (a - 0.2) / 3 * torch.tensor([1.0, 2.0, 3.0])[:, None, None],
    "shuffle": nn.ChannelShuffle(3),
    "up": nn.Upsample(scale_factor=2),
    "drop": nn.Dropout(0.5),
    "roll": lambda a: torch.cat([a[:, 1:], a[:, :1]], 1),
    "rectified": F.relu,
    "in place": lambda a: a.relu_(),
}


@pytest.mark.parametrize("name", LINEAR)
def test_steps_that_are_linear_are_let_through_with_their_gradient(name):
    torch.manual_seed(9)
    network = Hidden(LINEAR[name]).double().eval()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    a = network.first(x)
    z = network.head(network.step(a * 1))
    _, responses = clear.attentive_responses(network, x.detach(), "gated")
    for c in range(2):
        (gradient,) = torch.autograd.grad(
            0.5 * (z[:, c].clamp(min=0) ** 2).sum(), x, retain_graph=True
        )
        torch.testing.assert_close(responses[:, c], gradient[:, 0])


class Functions(nn.Module):
    """Convolutions, normalisation and pooling called as functions, by position and by name."""

    def __init__(self, training=False):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 2, 1)
        self.running, self.training_ = torch.rand(2, 4).double() + 0.5, training

    def forward(self, images):
        a = F.conv2d(images, self.first.weight) + F.conv2d(
            images, weight=self.first.weight, padding=(0, 0), stride=1
        )
        a = F.batch_norm(a, *self.running, None, None, self.training_)
        a = F.max_pool2d(a, 2, 1) + F.max_pool2d(a, kernel_size=2, stride=1, return_indices=True)[0]
        return self.head(torch.relu(a)).mean((2, 3))


def test_functions_called_by_position_and_by_name_are_read_alike():
    torch.manual_seed(13)
    network = Functions().double()
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    _, responses = clear.attentive_responses(network, x.detach(), "gated")
    a = F.max_pool2d(F.batch_norm(2 * network.first(x), *network.running), 2, 1)
    z = network.head((2 * a).relu())
    for c in range(2):
        (gradient,) = torch.autograd.grad(
            0.5 * (z[:, c].clamp(min=0) ** 2).sum(), x, retain_graph=True
        )
        torch.testing.assert_close(responses[:, c], gradient[:, 0])
    with pytest.raises(ValueError, match="NativeBatchNorm"):
        clear.attentive_responses(Functions(training=True).double(), x.detach(), "gated")


@pytest.mark.parametrize(
    "head", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)], ids=lambda m: type(m).__name__
)
def test_probabilities_instead_of_scores_are_refused(head):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), *ending(3, 2), head)
    with pytest.raises(ValueError, match="no class activation map exists"):
        clear.attentive_responses(network, torch.rand(1, 1, 8, 8))


def test_a_network_without_global_average_pooling_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    with pytest.raises(ValueError, match="no class activation map exists"):
        clear.attentive_responses(network, torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.rand(1, 28, 28), r"images are torch.float32 \(1, 28, 28\)"),
        (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "images are torch.uint8"),
        (torch.zeros(0, 1, 28, 28), r"images are torch.float32 \(0, 1, 28, 28\)"),
        (torch.full((1, 1, 28, 28), torch.nan), "images hold NaN"),
        (
            torch.full((1, 1, 28, 28), torch.inf),
            "images hold NaN or infinite values: they go from inf",
        ),
        ([[0.0]], "images are list"),
    ],
)
def test_images_that_are_no_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        clear.attentive_responses(AllConvNet(), images)


def test_images_from_0_to_255_are_warned_of():
    with pytest.warns(UserWarning, match="images go up to 255: normalise them"):
        clear.attentive_responses(AllConvNet(), torch.full((1, 1, 28, 28), 255.0))


@pytest.mark.parametrize("key", ["features.0.weight", "head.bias"])
def test_nan_in_the_weights_is_named(key):
    network = AllConvNet()
    network.get_parameter(key).data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"NaN or infinite values; its weights {key} do"):
        clear.attentive_responses(network, torch.rand(1, 1, 28, 28))


class Flattened(nn.Module):
    """Batch normalisation of maps (B, 8, H * W) instead of (B, 8, H, W)."""

    def __init__(self, norm):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.norm.load_state_dict(norm.state_dict())

    def forward(self, a):
        return self.norm(a.flatten(2)).view_as(a)


@pytest.mark.parametrize("relu", clear.RULES)
@pytest.mark.parametrize("images", [1, 2, 8])  # of 8 channels: no number may pass for another
def test_batch_normalisation_of_flattened_maps_is_that_of_maps(relu, images):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    nn.init.normal_(norm.weight)
    conv = nn.Conv2d(3, 8, 3)
    head = nn.Conv2d(8, 4, 1)
    tail = nn.ReLU(), head, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    x = torch.rand(images, 3, 9, 9)
    R = clear.attentive_responses(nn.Sequential(conv, norm, *tail).eval(), x, relu)[1]
    flat = nn.Sequential(conv, Flattened(norm), *tail).eval()
    assert R.abs().max() > 0
    torch.testing.assert_close(clear.attentive_responses(flat, x, relu)[1], R)


def test_a_leaky_relu_that_turns_signs_round_is_refused():
    tail = nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(-0.2), *tail)
    with pytest.raises(ValueError, match=r"the slope -0\.2"):
        clear.attentive_responses(network, torch.rand(1, 3, 9, 9))


@pytest.mark.parametrize("chunk", [1, 3, 7, None])
def test_any_chunk_gives_the_same_responses(chunk):
    torch.manual_seed(10)
    network, images = random_network(4).double(), torch.rand(7, 1, 28, 28, dtype=torch.float64)
    expected = clear.attentive_responses(network, images, chunk=100)
    for found, whole in zip(
        clear.attentive_responses(network, images, chunk=chunk), expected, strict=True
    ):
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)
    wanted = (c for c in (3, 1))  # which can be gone through only once
    found = clear.attentive_responses(network, images, classes=wanted, chunk=chunk)[1]
    torch.testing.assert_close(found, expected[1][:, [3, 1]], rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="chunk is 0"):
        clear.attentive_responses(network, images, chunk=0)


MEMORY = """
import resource, sys, torch
from lib.learning import networks
from lib.methods import clear
make, size, channels, count, classes = {}
network = getattr(networks, make)()
torch.nn.init.normal_(network.head.weight)
images = torch.rand(count, channels, size, size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clear.attentive_responses(network, images, "guided", classes)
added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(added * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        (("AllConvNet", 28, 1, 2_000, [3]), 0.7e9),
        (("RadiomicSequencer", 1024, 3, 1, None), 1.7e9),
    ],
    ids=["MNIST", "photograph"],
)
def test_memory_does_not_grow_with_the_images_and_a_large_photograph_fits(what, allowed):
    """Held at once, 2,000 digits would take 1.3 GB; the result itself is small."""
    said = subprocess.run(
        [sys.executable, "-c", MEMORY.format(what)], capture_output=True, text=True, check=True
    )
    assert float(said.stdout) < allowed


def test_a_class_kernel_that_responds_nowhere_is_black_and_not_projected(monkeypatch):
    torch.manual_seed(11)
    network, images = random_network(4), torch.rand(2, 1, 28, 28)
    network.head.bias.data[[0, 2]] = -1e6
    projected, grad = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: projected.append(a) or grad(*a, **k)
    )
    _, responses = clear.attentive_responses(network, images)
    assert len(projected) == 2
    assert not responses[:, [0, 2]].any() and responses[:, 1].any() and responses[:, 3].any()
    network.head.bias.data[:] = -1e6
    _, responses = clear.attentive_responses(network, images)
    assert torch.equal(clear.render(responses, (0.1, 0.3, 0.5, 0.7)), torch.zeros(2, 28, 28, 3))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode_will_do(context):
    torch.manual_seed(5)
    network, images = random_network(3), torch.rand(2, 1, 28, 28)
    expected = clear.attentive_responses(network, images)
    with context():
        found = clear.attentive_responses(network, images.clone())
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and not a.requires_grad


@pytest.mark.parametrize("relu", clear.RULES)
def test_bfloat16_is_float32_to_its_precision(relu):
    torch.manual_seed(12)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *ending(8)
    )
    images = torch.rand(2, 3, 24, 24)
    _, expected = clear.attentive_responses(network, images, relu)
    _, responses = clear.attentive_responses(network.bfloat16(), images.bfloat16(), relu)
    assert responses.dtype == torch.bfloat16
    assert F.cosine_similarity(responses.float().flatten(1), expected.flatten(1)).min() > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("relu", clear.RULES)
def test_cuda_agrees_with_the_cpu(relu):
    network, *_ = exotic("resnet18")
    images = torch.randn(2, 3, 75, 68).double()
    _, expected = clear.attentive_responses(network, images, relu)
    _, responses = clear.attentive_responses(network.cuda(), images.cuda(), relu)
    torch.testing.assert_close(
        responses.cpu(), expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item()
    )


def test_the_dominant_class_and_response_at_each_pixel():
    responses = torch.tensor([[[[1.0, -5.0, 0.0]], [[3.0, -4.0, 2.0]], [[2.0, -6.0, 9.0]]]])
    class_map, response = clear.dominant(responses)
    assert class_map.tolist() == [[[1, 1, 2]]]
    assert response.tolist() == [[[3.0, -4.0, 9.0]]]


def test_the_clear_map_has_the_colours_of_the_standard_librarys_hsv():
    torch.manual_seed(7)
    responses = torch.randn(3, 5, 4, 6)
    responses[2] = -responses[2].abs()
    rendered = clear.render(responses, clear.GRADE_HUES)
    assert rendered.shape == (3, 4, 6, 3) and torch.isfinite(rendered).all()
    for image, y, x in itertools.product(range(3), range(4), range(6)):
        column = responses[image, :, y, x].tolist()
        value = max(*column, 0) / max(responses[image].max().item(), 1e-30)
        expected = colorsys.hsv_to_rgb(clear.GRADE_HUES[column.index(max(column))], 1, value)
        assert rendered[image, y, x].tolist() == pytest.approx(expected, abs=1e-6)


def test_no_response_is_black_and_other_hues_than_classes_are_refused():
    nothing = clear.render(torch.zeros(1, 2, 3, 3), (0.2, 0.5))
    assert torch.equal(nothing, torch.zeros(1, 3, 3, 3))
    for hues in [(0.1,), (0.1, 0.5, 0.7)]:
        with pytest.raises(ValueError, match=f"{len(hues)} hues for responses of 2 classes"):
            clear.render(torch.ones(1, 2, 2, 2), hues)


def test_the_hues_are_distinct_and_as_many_as_classes():
    for hues, count in ((clear.DIGIT_HUES, 10), (clear.GRADE_HUES, 5)):
        assert len(hues) == count
        circle = sorted(hues)
        gaps = [b - a for a, b in zip(circle, [*circle[1:], circle[0] + 1], strict=True)]
        assert min(gaps) > 0.08
