"""Class activation maps by hand, over torchvision's architectures, against Captum and TorchCAM."""

import collections
import contextlib
import copy

import pytest
import torch
import torchcam.methods
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision import models

from lib.learning import networks
from lib.methods import cam


def tiny(conv_head=False):
    """f_0 = max(x - 1, 0), f_1 = max(3 - x, 0); S_0 = F_0 + 2 F_1 + 1/2, S_1 = -F_0 + 4 F_1 - 1."""
    first, average = nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1)
    head = nn.Conv2d(2, 2, 1) if conv_head else nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        first.bias.copy_(torch.tensor([-1.0, 3.0]))
        head.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 4.0]]).view_as(head.weight))
        head.bias.copy_(torch.tensor([0.5, -1.0]))
    last = [head, average, nn.Flatten()] if conv_head else [average, nn.Flatten(), head]
    return nn.Sequential(first, nn.ReLU(), *last)


IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


@pytest.mark.parametrize("conv_head", [False, True])
def test_a_network_of_two_maps_and_two_classes_gives_the_numbers_worked_out_by_hand(conv_head):
    network = tiny(conv_head)
    f, weight, bias = cam.features_and_weights(network, IMAGE)
    assert f.tolist() == [[[[0, 1], [2, 3]], [[2, 1], [0, 0]]]]
    assert f.mean((2, 3)).tolist() == [[1.5, 0.75]]
    assert weight.tolist() == [[1, 2], [-1, 4]] and bias.tolist() == [0.5, -1]
    scores, maps = cam.class_activation_maps(network, IMAGE)
    assert scores.tolist() == [[3.5, 0.5]]
    assert maps.tolist() == [[[[4, 3], [2, 3]], [[8, 3], [-2, -3]]]]


def test_classes_are_given_in_the_order_asked_for():
    _, maps = cam.class_activation_maps(tiny(), IMAGE, classes=[1, 0, 1])
    assert maps[0, :, 0, 0].tolist() == [8, 4, 8]


def test_a_head_without_bias_has_none_and_its_scores_are_the_means_of_its_maps():
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4, bias=False)
    )
    images = torch.randn(2, 3, 8, 9)
    assert cam.features_and_weights(network, images)[2] is None
    scores, maps = cam.class_activation_maps(network, images)
    torch.testing.assert_close(maps.mean((2, 3)), scores)


class InPlaceResidual(nn.Module):
    """x += shortcut, then a functional ReLU in place, averaged one axis after the other, then a 1x1
    convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, images):
        x = self.first(images)
        y = self.second(x)
        y += x
        y = functional.relu(y, inplace=True).mean(3).mean(2)
        return self.head(y[:, :, None, None]).flatten(1)


ARCHITECTURES = (
    "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
    "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_y_400mf",
)  # fmt: skip
WITHOUT_INIT = {"googlenet", "inception_v3"}  # theirs takes a minute


@pytest.mark.parametrize("name", [*ARCHITECTURES, "conv head", "residual in place"])
def test_the_score_is_the_mean_of_the_map_and_the_bias_for_any_weights(name):
    torch.manual_seed(1)
    if name in ARCHITECTURES:
        options = {"init_weights": False} if name in WITHOUT_INIT else {}
        network = models.get_model(name, weights=None, num_classes=9, **options)
    else:
        network = (
            InPlaceResidual() if name == "residual in place" else networks.AllConvNet(4, 3, (6, 8))
        )
    images = torch.rand(1, 3, 96, 107)
    scores, maps = cam.class_activation_maps(network, images)
    expected = network.eval()(images)
    assert maps.shape[:2] == scores.shape and maps[0, 0].numel() > 1
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=0)
    mean = maps.mean((2, 3)) + cam.features_and_weights(network, images)[2]
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_behind_squeezenets_relu_the_score_is_the_mean_of_what_is_left_of_the_map():
    torch.manual_seed(1)
    network, images = models.squeezenet1_1(weights=None), torch.rand(1, 3, 96, 96)
    scores, maps = cam.class_activation_maps(network, images)
    _, weight, bias = cam.features_and_weights(network, images)
    evidence = maps + bias[:, None, None]
    torch.testing.assert_close(evidence.clamp(min=0).mean((2, 3)), network.eval()(images))
    assert weight.shape == (1000, 512) and (evidence.mean((2, 3)) < scores - 1e-4).any()


def test_captums_gradcam_of_the_last_layer_is_the_map_over_its_number_of_places():
    torch.manual_seed(2)
    network, images = models.resnet18(weights=None).eval(), torch.rand(2, 3, 96, 64)
    _, maps = cam.class_activation_maps(network, images, classes=[7])
    expected = LayerGradCam(network, network.layer4).attribute(images, target=7)
    torch.testing.assert_close(maps / maps[0, 0].numel(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, layer, head", [("resnet18", "layer4", "fc"), ("regnet_x_400mf", "trunk_output", "fc")]
)
def test_torchcam_gives_the_same_maps_up_to_its_normalisation(name, layer, head):
    torch.manual_seed(2)
    network, images = models.get_model(name, weights=None).eval(), torch.rand(2, 3, 96, 64)
    _, maps = cam.class_activation_maps(network, images, classes=[7])
    with torchcam.methods.CAM(network, layer, head) as extractor:
        (expected,) = extractor(7, network(images), normalized=False)
        (normalised,) = extractor(7, network(images))
    torch.testing.assert_close(maps[:, 0], expected, rtol=1e-4, atol=1e-6)
    low, high = (reduce(maps[:, 0], (1, 2), keepdim=True) for reduce in (torch.amin, torch.amax))
    torch.testing.assert_close((maps[:, 0] - low) / (high - low), normalised, rtol=1e-4, atol=1e-4)


class OwnActivation(nn.Module):
    """A head that applies `activation` to the scores."""

    def __init__(self, activation):
        super().__init__()
        self.network, self.activation = tiny(), activation

    def forward(self, images):
        return self.activation(self.network(images))


MAX_POOLED = nn.Sequential(
    nn.Conv2d(3, 5, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 4)
)
REFUSED = {
    "MobileNetV3": (lambda: models.mobilenet_v3_small(weights=None), torch.rand(1, 3, 96, 96)),
    "AlexNet": (lambda: models.alexnet(weights=None), torch.rand(1, 3, 96, 96)),
    "VGG": (lambda: models.vgg11(weights=None, init_weights=False), torch.rand(1, 3, 64, 64)),
    "softmax": (lambda: OwnActivation(lambda scores: scores.softmax(1)), IMAGE),
    "sigmoid": (lambda: OwnActivation(torch.sigmoid), IMAGE),
    "max pooling": (lambda: MAX_POOLED, torch.randn(1, 3, 8, 8)),
    "maps of 1x1": (lambda: models.resnet18(weights=None), torch.rand(1, 3, 32, 32)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_whose_scores_are_no_average_of_maps_is_refused_with_what_to_do(name):
    build, images = REFUSED[name]
    with pytest.raises(
        ValueError, match=r"no class activation map exists.*larger images.*global average pooling"
    ):
        cam.class_activation_maps(build(), images)


def test_a_network_without_weights_and_one_with_a_3x3_head_are_refused():
    with pytest.raises(ValueError, match="ReLU has no linear or convolutional layer"):
        cam.class_activation_maps(nn.ReLU(), IMAGE)
    with pytest.raises(ValueError, match="one number for each feature map"):
        cam.features_and_weights(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            torch.rand(1, 1, 9, 9),
        )


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGE[0], r"\(1, 2, 2\)"),
        (IMAGE.long(), "int64"),
        (IMAGE.numpy(), "ndarray"),
        (IMAGE[:0], r"\(0, 1, 2, 2\)"),
    ],
)
def test_images_of_another_rank_or_type_and_an_empty_batch_are_refused(images, got):
    with pytest.raises(ValueError, match=rf"images are .*{got}.*\(B, C, H, W\)"):
        cam.class_activation_maps(tiny(), images)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        cam.class_activation_maps(tiny(), IMAGE * torch.nan)


@pytest.mark.parametrize("c", [2, -1])
def test_a_class_out_of_range_is_refused(c):
    with pytest.raises(
        ValueError, match=rf"classes \[{c}\] out of range; the network has 2 classes, 0 to 1"
    ):
        cam.class_activation_maps(tiny(), IMAGE, classes=[0, c])


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121"])
def test_images_smaller_than_the_stride_are_refused_with_their_size(name):
    network = models.get_model(name, weights=None)
    with pytest.raises(
        ValueError,
        match=f"images of 9 x 8 pixels are smaller than the stride of {type(network).__name__}",
    ):
        cam.class_activation_maps(network, torch.rand(1, 3, 9, 8))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_images_for_a_network_of_three_channels_are_refused(channels):
    with pytest.raises(
        ValueError,
        match=rf"images have {channels} channel\(s\), SqueezeNet takes 3.*convert\('RGB'\)",
    ):
        cam.class_activation_maps(
            models.squeezenet1_1(weights=None), torch.rand(1, channels, 64, 64)
        )


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 16, 16), torch.rand(2, 4, 16, 16), torch.rand(2, 3, 2, 2)]
)
def test_the_network_is_left_as_it_was_also_after_an_error(images):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    network.train()[1].eval()
    network[0].bias.requires_grad_(False)
    state, modes = (
        copy.deepcopy(network.state_dict()),
        [module.training for module in network.modules()],
    )
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    try:
        scores, maps = cam.class_activation_maps(network, images)
        assert not scores.requires_grad and not maps.requires_grad
    except (ValueError, RuntimeError):
        assert images.shape[1:] != (3, 16, 16)
    else:
        assert images.shape[1:] == (3, 16, 16)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == wanted
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )


def test_maps_are_those_of_evaluation_mode():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    images = torch.rand(1, 3, 8, 8)
    first, second = (cam.class_activation_maps(network.train(), images)[1] for _ in range(2))
    assert torch.equal(first, second) and network.training


def test_upsampling_is_bilinear_between_the_centres_of_the_pixels():
    maps = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    large = cam.upsample(maps, (4, 6))
    assert large.shape == (1, 1, 4, 6)
    # row 1 lies at (1 + 1/2) / 2 - 1/2 = 1/4, column 2 at (2 + 1/2) / 3 - 1/2 = 1/3 between the
    # centres
    assert large[0, 0, 1, 2].item() == pytest.approx(0.75 * (4 / 3) + 0.25 * (8 + 4 / 3))
    assert large[0, 0, 0, 0] == 0 and large[0, 0, 3, 5] == 12


class Wrapped(nn.Module):
    """`forward(network, images)` in the place of the network's own."""

    def __init__(self, network, forward):
        super().__init__()
        self.network, self.call = network, forward

    def forward(self, images):
        return self.call(self.network, images)


def small(seed=0, inplace=False):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def first_channel_zero(images):
    images[:, 0] = 0
    return images


def negatives_zero(images):
    images[images < 0] = 0
    return images


MEAN = torch.tensor([0.5, 0.1, -0.2])[:, None, None]
CHANGED_IN_PLACE = {
    "subtract": (lambda x: x.sub_(MEAN), lambda x: x - MEAN),
    "clamp": (lambda x: x.clamp_(0, 1), lambda x: x.clamp(0, 1)),
    "ReLU": (nn.ReLU(inplace=True), nn.ReLU()),
    "channel": (first_channel_zero, lambda x: torch.cat([0 * x[:, :1], x[:, 1:]], 1)),
    "negatives": (negatives_zero, nn.ReLU()),
    "data": (lambda x: x.data.mul_(2) + 0, lambda x: 2 * x),
}


@pytest.mark.parametrize("name", CHANGED_IN_PLACE)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_network_that_changes_its_input_in_place_gives_its_maps_and_leaves_the_images(
    name, context
):
    in_place, plain = CHANGED_IN_PLACE[name]
    images = torch.randn(2, 3, 9, 8)
    before = images.clone()
    _, expected = cam.class_activation_maps(Wrapped(small(), lambda n, x: n(plain(x))), images)
    network = Wrapped(small(), lambda n, x: n(in_place(x)))
    with context():
        for _ in range(2):
            _, maps = cam.class_activation_maps(network, images)
            torch.testing.assert_close(maps, expected)
    assert torch.equal(images, before)


def flipped_features(network, images):
    both = network[:-1](images) + network[:-1](images.flip(3))
    return network[-1](both / 2)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("symmetrical", [False, True])
def test_a_head_that_is_called_twice_is_refused_also_where_both_calls_agree(normed, symmetrical):
    network = small()
    if normed:  # the weights are computed anew for each call
        nn.utils.parametrizations.weight_norm(network[-1])
    images = torch.randn(2, 3, 9, 8)
    if symmetrical:
        images = images + images.flip(3)
    cam.class_activation_maps(network, images)
    averaged = Wrapped(network, lambda n, x: (n(x) + n(x.flip(3))) / 2)
    with pytest.raises(ValueError, match=r"head, of weights \(4, 5\), more than once.*flips"):
        cam.class_activation_maps(averaged, images)
    with pytest.raises(ValueError, match="no class activation map exists"):
        cam.class_activation_maps(Wrapped(network, flipped_features), images)
    with pytest.raises(ValueError, match="no class activation map exists"):  # equal, not close
        cam.class_activation_maps(Wrapped(tiny(), flipped_features), IMAGE)


def test_where_the_maps_are_summed_as_in_the_papers_eq_1_the_scores_are_the_maps_sums():
    network = tiny()
    network[2] = Wrapped(None, lambda _, f: f.sum((2, 3), keepdim=True))
    scores, maps = cam.class_activation_maps(network, IMAGE)
    assert scores.tolist() == [[12.5, 5.0]]  # F_0 = 6, F_1 = 3
    assert maps.tolist() == [[[[4, 3], [2, 3]], [[8, 3], [-2, -3]]]]  # as where they are averaged
    assert (maps.sum((2, 3)) + network[-1].bias).tolist() == scores.tolist()
    _, f, z = cam.forward_to_head(network, IMAGE)
    assert f.sum((2, 3)).tolist() == [[6, 3]] and z.sum((2, 3)).tolist() == scores.tolist()
    conv_head = Wrapped(tiny(conv_head=True)[:3], lambda n, x: n(x).sum((2, 3)))
    scores, maps = cam.class_activation_maps(conv_head, IMAGE)
    assert scores.tolist() == [[12 + 4 * 0.5, 6 - 4]] and maps[0, :, 0, 0].tolist() == [4, 8]


class HeadFirst(nn.Module):
    """The head is registered first, and a layer that is never called last."""

    def __init__(self, network):
        super().__init__()
        self.head, self.features, self.unused = network[-1], network[:-1], nn.Linear(7, 9)

    def forward(self, images):
        return self.head(self.features(images))


def test_the_head_is_the_last_layer_called_not_the_last_registered():
    images = torch.randn(2, 3, 9, 8)
    expected = cam.class_activation_maps(small(), images)
    found = cam.class_activation_maps(HeadFirst(small()), images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    _, weight, bias = cam.features_and_weights(HeadFirst(small()), images)
    assert torch.equal(weight, small()[-1].weight) and torch.equal(bias, small()[-1].bias)
    functions = Wrapped(
        small(), lambda n, x: functional.linear(n[:-1](x), n[-1].weight, n[-1].bias)
    )
    assert torch.equal(cam.class_activation_maps(functions, images)[1], expected[1])


Output = collections.namedtuple("Output", "logits hidden")
NO_SCORES = {
    "tuple": (
        lambda s: (s, s),
        r"answers with a tuple, and one tensor.*\(2, N\).*wrap it",
    ),
    "dict": (lambda s: {"logits": s, "loss": 0}, "answers with a dict of logits, loss.*wrap it"),
    "named": (lambda s: Output(s, s), "answers with a Output of logits, hidden"),
    "(B,)": (lambda s: s[:, 0], r"answers with scores \(2,\).*\(B, 1\), without squeeze"),
    "(B, N, 1, 1)": (lambda s: s[:, :, None, None], r"answers with scores \(2, 4, 1, 1\)"),
}


@pytest.mark.parametrize("name", NO_SCORES)
def test_an_answer_that_is_not_one_tensor_of_scores_is_named_with_what_to_do(name):
    answer, message = NO_SCORES[name]
    with pytest.raises(ValueError, match=rf"Wrapped {message}"):
        cam.class_activation_maps(
            Wrapped(small(), lambda n, x: answer(n(x))), torch.randn(2, 3, 9, 8)
        )


@pytest.mark.parametrize("step", [torch.sigmoid_, lambda s: s.clamp_(0, 0.1), torch.abs_])
@pytest.mark.parametrize("conv_head", [False, True])
def test_scores_that_are_changed_in_place_are_no_average_of_maps(step, conv_head):
    if conv_head:
        network = Wrapped(tiny(True), lambda n, x: step(n[:3](x)).mean((2, 3)))
    else:
        network = Wrapped(tiny(), lambda n, x: step(n(x) - 2 if step is torch.abs_ else n(x)))
    with pytest.raises(ValueError, match="no class activation map exists"):
        cam.class_activation_maps(network, IMAGE)


def test_layers_without_values_and_scripted_networks_are_refused_with_what_to_do():
    lazy = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    for network in (lazy, small().to("meta")):
        with pytest.raises(ValueError, match=r"weights 0\.weight have no values yet.*one batch"):
            cam.class_activation_maps(network, torch.rand(1, 3, 9, 9))
    images = torch.rand(1, 3, 9, 9)
    for network in (torch.jit.script(small()), torch.jit.trace(small(), images)):
        with pytest.raises(ValueError, match=r"compiled by torch\.jit.*as it was before"):
            cam.class_activation_maps(network, images)
    partly = nn.Sequential(torch.jit.script(small()[:4]), *small()[4:])
    with pytest.raises(ValueError, match=r"Sequential's part 0 is compiled by torch\.jit"):
        cam.class_activation_maps(partly, images)


def compiled_in_place():
    network = small()
    network.compile(backend="eager")
    return network


def compiled_in_part():
    network = small()
    network[2] = torch.compile(network[2], backend="eager")
    return network


def checkpointed(reentrant):
    def forward(network, images):
        for part in network[:2], network[2:5]:
            images = checkpoint(part, images, use_reentrant=reentrant)
        return network[5:](images)

    return Wrapped(small(), forward)


# The same network, run in another way.
DRESSED = {
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled in part": compiled_in_part,
    "DataParallel": lambda: nn.DataParallel(small()),
    "DataParallel, compiled": lambda: torch.compile(nn.DataParallel(small()), backend="eager"),
    "checkpoint": lambda: checkpointed(False),
    "reentrant checkpoint": lambda: checkpointed(True),
    "inference_mode": lambda: Wrapped(small(), torch.inference_mode()(lambda n, x: n(x))),
}


@pytest.mark.parametrize("name", DRESSED)
def test_a_compiled_parallel_or_checkpointed_network_gives_the_maps_of_the_network_itself(name):
    images = torch.randn(2, 3, 9, 8)
    expected = cam.class_activation_maps(small(), images)
    before = vars(torch.utils.checkpoint).copy()
    for found, whole in zip(
        cam.class_activation_maps(DRESSED[name](), images), expected, strict=True
    ):
        torch.testing.assert_close(found, whole)
    assert vars(torch.utils.checkpoint) == before


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_maps_to_its_precision(within, dtype):
    images = torch.randn(2, 3, 9, 8)
    _, expected = cam.class_activation_maps(small(), images)
    autocast = torch.autocast("cpu", dtype)
    network = Wrapped(small(), autocast(lambda n, x: n(x).float())) if within else small()
    with contextlib.nullcontext() if within else autocast:
        _, maps = cam.class_activation_maps(network, images)
    assert functional.cosine_similarity(maps.float().flatten(1), expected.flatten(1)).min() > 0.999


class SpaceToDepth(nn.Module):
    """As TResNet begins: the first convolution has 16 times the image's channels."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(48, 5, 3), nn.Linear(5, 2)

    def forward(self, images):
        f = self.first(functional.pixel_unshuffle(images, 4))
        return self.head(f.mean((2, 3)))


def test_a_network_that_converts_its_images_gets_them_and_no_advice_on_converting():
    _, maps = cam.class_activation_maps(SpaceToDepth(), torch.rand(1, 3, 24, 16))
    assert maps.shape == (1, 2, 4, 2)
    with pytest.raises(ValueError, match=r"\(1, 1, 24, 16\).*48 channels, but got 16") as error:
        cam.class_activation_maps(SpaceToDepth(), torch.rand(1, 1, 24, 16))
    assert "convert" not in str(error.value)
    grey = torch.rand(1, 1, 9, 8)
    converting = Wrapped(small(), lambda n, x: n(x.repeat(1, 3, 1, 1)))
    _, expected = cam.class_activation_maps(small(), grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(cam.class_activation_maps(converting, grey)[1], expected)
    with pytest.raises(ValueError, match=r"images have 3 channel\(s\), Sequential takes 1$"):
        cam.class_activation_maps(tiny(), torch.rand(1, 3, 4, 4))


def test_a_precision_that_overflows_is_named():
    network, images = tiny().half(), 20 * IMAGE.half()
    network[-1].weight.data *= 1e4
    with pytest.raises(ValueError, match=r"scores hold NaN.*torch\.float16 overflows beyond 6\.55"):
        cam.class_activation_maps(network, images)
    network = tiny().half()  # scores of a mean fit, a map's maximum does not
    network[-1].weight.data = torch.tensor([[4e4, 0], [0, 4e4]]).half()
    network[-1].bias.data.zero_()
    with pytest.raises(ValueError, match=r"maps hold NaN.*torch\.float16 overflows.*bfloat16"):
        cam.class_activation_maps(network, torch.tensor([[[[1.0, 1, 1, 4.0]]]]).half())


def test_a_1x1_head_with_a_stride_is_refused_since_it_skips_places_of_its_maps():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(ValueError, match=r"stride \(2, 2\).*one number for each feature map"):
        cam.class_activation_maps(network, torch.rand(1, 3, 9, 9))
