"""lib.clear against a network computed by hand, Eq. 3 transcribed literally, and Captum."""

import colorsys

import captum.attr
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import clear
from lib.networks import AllConvNet


def random_network(*arguments):
    """An AllConvNet whose class kernels and normalisation, too, are random, and that responds somewhere."""
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
# head: z_0 = 3*(2, 0) - (0, 2) = (6, -2), z_1 = -(2, 0) + 2*(0, 2) = (-2, 4). Rectified: (6, 0) and (0, 4).
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


# The four rules differ where a and R differ in sign: x = (2, 1), a = (2, 1), (-4, -2); ReLU: (2, 1), (0, 0);
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
    """A response of `weight`/2 arrives at a ReLU that got the image; `other` makes z positive whatever the image is."""

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
    """Eq. 3, literally: conv_transpose2d for G, max_unpool2d for U. Batch normalisation scales each kernel."""
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
    """Scores whose derivative by z is max(z, 0): lets Captum start from the rectified class kernel responses."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        z = self.network.head(self.network.features(images))
        return (0.5 * z * (z > 0) * z).sum((2, 3))


@pytest.mark.parametrize(
    "relu, method",
    [("deconvnet", captum.attr.Deconvolution), ("guided", captum.attr.GuidedBackprop), ("gated", None)],
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
            expected = captum.attr.Saliency(HalfSquare(network)).attribute(images, target=c, abs=False)
        torch.testing.assert_close(responses[:, c], expected.sum(1), rtol=1e-10, atol=1e-12)


class Residual(nn.Module):
    """One in-place ReLU module used twice, a functional ReLU, batch norm, a shortcut added in place, a linear head."""

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
    readings = [clear.attentive_responses(plain, images, other)[1] for other in clear.RULES if other != relu]
    assert not any(torch.allclose(expected, reading) for reading in readings)


def test_the_gated_reading_of_a_residual_network_is_the_gradient_of_half_the_squared_response():
    torch.manual_seed(3)
    network = Residual(False).double().eval()
    images = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    y = network.relu(
        network.norm(network.second(network.relu(network.first(images)))) + network.relu(network.first(images))
    )
    z = torch.einsum("nk,bkhw->bnhw", network.head.weight, F.relu(y - 0.2)) + network.head.bias[:, None, None]
    _, responses = clear.attentive_responses(network, images.detach(), "gated")
    for c in range(3):
        (gradient,) = torch.autograd.grad(0.5 * (z[:, c].clamp(min=0) ** 2).sum(), images, retain_graph=True)
        torch.testing.assert_close(responses[:, c], gradient.sum(1))


def state(network):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in network.modules()]
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
        with pytest.raises(RuntimeError):
            clear.attentive_responses(network, torch.zeros(1, 2, 8, 8))
    assert state(network) == before
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert torch.equal(images, image_before) and not images.requires_grad


def test_it_works_without_gradients_and_returns_none():
    torch.manual_seed(5)
    network, images = random_network(3), torch.rand(2, 1, 28, 28)
    expected = clear.attentive_responses(network, images)
    with torch.no_grad():
        found = clear.attentive_responses(network, images)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and not a.requires_grad


def test_scores_and_order_of_the_classes():
    torch.manual_seed(6)
    network, images = random_network(5), torch.rand(3, 1, 28, 28)
    scores, responses = clear.attentive_responses(network, images)
    torch.testing.assert_close(scores, network.eval()(images).detach())
    _, chosen = clear.attentive_responses(network, images, classes=[4, 1])
    assert torch.equal(chosen, responses[:, [4, 1]])


@pytest.mark.parametrize(
    "last", [nn.GELU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Hardtanh(), nn.SiLU()], ids=lambda m: type(m).__name__
)
def test_a_non_linearity_without_a_reading_is_refused(last):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), last, nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="no reading of Eq"):
        clear.attentive_responses(network, torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("head", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)], ids=lambda m: type(m).__name__)
def test_probabilities_instead_of_scores_are_refused(head):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    with pytest.raises(ValueError):
        clear.attentive_responses(network, torch.rand(1, 1, 8, 8))


def test_the_dominant_class_and_response_at_each_pixel():
    responses = torch.tensor([[[[1.0, -5.0, 0.0]], [[3.0, -4.0, 2.0]], [[2.0, -6.0, 9.0]]]])
    class_map, response = clear.dominant(responses)
    assert class_map.tolist() == [[[1, 1, 2]]]
    assert response.tolist() == [[[3.0, -4.0, 9.0]]]


def test_the_clear_map_has_the_colours_of_the_standard_librarys_hsv():
    class_map = torch.tensor([[[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]]])
    response = torch.tensor([[[8.0, 2.0, 4.0, -3.0, 0.0]], [[0.5, 0.25, 0.5, 0.125, 0.1]]])
    rendered = clear.render(class_map, response, clear.GRADE_HUES)
    for image in range(2):
        for x in range(5):
            value = max(response[image, 0, x].item(), 0) / response[image].max().item()
            expected = colorsys.hsv_to_rgb(clear.GRADE_HUES[class_map[image, 0, x]], 1, value)
            assert rendered[image, 0, x].tolist() == pytest.approx(expected, abs=1e-6)


def test_no_response_is_black_and_a_class_without_a_hue_is_refused():
    nothing = clear.render(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2), (0.5,))
    assert torch.equal(nothing, torch.zeros(1, 2, 2, 3))
    with pytest.raises(ValueError, match="class 2 has no hue: 2 hues"):
        clear.render(torch.full((1, 2, 2), 2), torch.ones(1, 2, 2), (0.1, 0.5))


def test_the_hues_are_distinct_and_as_many_as_classes():
    for hues, count in ((clear.DIGIT_HUES, 10), (clear.GRADE_HUES, 5)):
        assert len(hues) == count
        circle = sorted(hues)
        gaps = [b - a for a, b in zip(circle, [*circle[1:], circle[0] + 1], strict=True)]
        assert min(gaps) > 0.08
