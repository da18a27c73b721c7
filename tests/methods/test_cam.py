"""Class activation maps by hand, over torchvision's architectures, against Captum and TorchCAM."""

import copy

import pytest
import torch
import torchcam.methods
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional
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
    features, weight, bias = cam.features_and_weights(network)
    f = features(IMAGE)
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
    assert cam.features_and_weights(network)[2] is None
    scores, maps = cam.class_activation_maps(network, torch.randn(2, 3, 8, 9))
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
    mean = maps.mean((2, 3)) + cam.features_and_weights(network)[2]
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_behind_squeezenets_relu_the_score_is_the_mean_of_what_is_left_of_the_map():
    torch.manual_seed(1)
    network, images = models.squeezenet1_1(weights=None), torch.rand(1, 3, 96, 96)
    scores, maps = cam.class_activation_maps(network, images)
    _, weight, bias = cam.features_and_weights(network)
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
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
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
