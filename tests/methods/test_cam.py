"""Class activation maps by hand, over torchvision's architectures, against Captum; boxes on maps made by hand."""

import copy
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchcam.methods
from captum.attr import LayerGradCam
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.transforms._presets import ImageClassification

from lib import paths
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
    features, weight, bias = cam.split(network)
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
    assert cam.split(network)[2] is None
    scores, maps = cam.class_activation_maps(network, torch.randn(2, 3, 8, 9))
    torch.testing.assert_close(maps.mean((2, 3)), scores)


class InPlaceResidual(nn.Module):
    """x += shortcut, then a functional ReLU in place, averaged one axis after the other, then a 1x1 convolution."""

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
    "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "densenet169", "googlenet", "inception_v3", "mobilenet_v2", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "efficientnet_b0",
    "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_v2_s", "regnet_x_400mf", "regnet_x_800mf",
    "regnet_y_400mf", "regnet_y_800mf",
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
    mean = maps.mean((2, 3)) + cam.split(network)[2]
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_behind_squeezenets_relu_the_score_is_the_mean_of_what_is_left_of_the_map():
    torch.manual_seed(1)
    network, images = models.squeezenet1_1(weights=None), torch.rand(1, 3, 96, 96)
    scores, maps = cam.class_activation_maps(network, images)
    _, weight, bias = cam.split(network)
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
        cam.split(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


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


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 4), (30, 40, 1)])
def test_grey_and_rgba_photographs_are_refused(shape):
    with pytest.raises(ValueError, match="not uint8"):
        networks.prepared(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="uint16"):
        networks.prepared(np.zeros((30, 40, 3), np.uint16))


def test_a_photograph_is_prepared_as_torchvision_prepares_it():
    photograph = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    preset = ImageClassification(crop_size=224, resize_size=224)
    expected = preset(torch.tensor(photograph).permute(2, 0, 1))
    torch.testing.assert_close(
        networks.prepared(photograph)[0], expected, atol=0.02, rtol=0
    )  # theirs rounds to uint8


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 16, 16), torch.rand(2, 4, 16, 16), torch.rand(2, 3, 2, 2)]
)
def test_the_network_is_left_as_it_was_also_after_an_error(images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
                            nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))  # fmt: skip
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
    # row 1 lies at (1 + 1/2) / 2 - 1/2 = 1/4, column 2 at (2 + 1/2) / 3 - 1/2 = 1/3 between the centres
    assert large[0, 0, 1, 2].item() == pytest.approx(0.75 * (4 / 3) + 0.25 * (8 + 4 / 3))
    assert large[0, 0, 0, 0] == 0 and large[0, 0, 3, 5] == 12


def test_the_box_is_that_of_the_largest_part_not_of_the_highest():
    map = np.zeros((6, 8))
    map[0, 0], map[2:5, 3:7] = 1, 0.5
    assert cam.box(map) == (3, 2, 7, 5)
    assert cam.box(map, 0.5) == (0, 0, 1, 1), "above, so not equal to, the threshold"
    assert cam.box(torch.tensor(map), 0.4) == (3, 2, 7, 5)


def test_pixels_that_meet_at_a_corner_are_two_parts_and_of_equal_parts_the_uppermost_counts():
    assert cam.box(np.eye(3)) == (0, 0, 1, 1)
    assert cam.box([[0, 0, 1], [1, 0, 0]]) == (2, 0, 3, 1)


def test_negative_values_are_below_every_threshold():
    assert cam.box([[-9.0, -9.0], [0.0, 1e-6]], 0) == (1, 1, 2, 2)


@pytest.mark.parametrize(
    "map",
    [
        np.zeros((3, 3)),
        -np.ones((3, 3)),
        np.full((2, 2), np.nan),
        [[1, np.inf]],
        [1, 2],
        np.ones((3, 3)),
    ],
)
def test_a_map_without_a_positive_finite_maximum_or_equal_everywhere_has_no_box(map):
    with pytest.raises(ValueError, match="no box in a map"):
        cam.box(map)


@pytest.mark.parametrize("threshold", [-0.1, 1, 20, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold is"):
        cam.box(np.eye(3), threshold)


@pytest.fixture
def squeezenet():
    torch.manual_seed(3)
    return models.squeezenet1_1(weights=None).eval()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_are_read_from_a_path_and_from_the_data_sets_folder(
    squeezenet, kind, tmp_path, monkeypatch
):
    path = tmp_path / f"imagenet/squeezenet1_1.{kind}"
    path.parent.mkdir()
    (save_file if kind == "safetensors" else torch.save)(squeezenet.state_dict(), path)
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    given = "" if kind == "safetensors" else str(path)
    network, origin = networks.imagenet("squeezenet1_1", given)
    images = torch.rand(1, 3, 64, 64)
    assert origin == f"squeezenet1_1.{kind}" and not network.training
    assert torch.equal(network(images), squeezenet(images))


def test_weights_of_another_network_and_files_of_another_kind_are_refused_with_the_first_keys(
    squeezenet, tmp_path
):
    torch.save(squeezenet.state_dict(), tmp_path / "given.pth")
    torch.save({"epoch": 3, "state_dict": squeezenet.state_dict()}, tmp_path / "wrapped.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(
        ValueError, match=r"given.pth does not fit ResNet.*features\.0\.weight.*conv1\.weight"
    ):
        networks.imagenet("resnet18", str(tmp_path / "given.pth"))
    with pytest.raises(
        ValueError, match=r"it holds epoch, state_dict, \.\.\. instead of features\.0\.weight"
    ):
        networks.imagenet("squeezenet1_1", str(tmp_path / "wrapped.pth"))
    with pytest.raises(ValueError, match="nothing readable"):
        networks.imagenet("squeezenet1_1", str(tmp_path / "text.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"no weights at .*missing.pth"):
        networks.imagenet("squeezenet1_1", str(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match="no classification network 'resnet99'"):
        networks.imagenet("resnet99")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Neither a data set's folder nor a cache holds weights."""
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_a_damaged_download_is_named_and_to_be_deleted(nowhere, tmp_path):
    cached = tmp_path / "checkpoints" / Path(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name
    cached.parent.mkdir()
    cached.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(
        ValueError, match=rf"{cached.name}, torchvision's download, cannot be used .*Delete it"
    ):
        networks.imagenet("squeezenet1_1")


def test_without_a_network_the_steps_to_get_the_weights_are_named(nowhere, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(networks, "urlopen", refuse)
    with pytest.raises(
        ConnectionError,
        match=r"(?s)URLError.*1\. download https://.*2\. .*3\. .*COMPANION_DATASETS",
    ):
        networks.imagenet("squeezenet1_1")


def test_a_server_that_accepts_and_stays_silent_counts_as_no_network(nowhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = SimpleNamespace(url=f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth")
        monkeypatch.setattr(models, "get_model_weights", lambda architecture: [source])
        monkeypatch.setattr(networks, "SILENCE", 0.3)
        started, before = time.perf_counter(), socket.getdefaulttimeout()
        with pytest.raises(ConnectionError, match="TimeoutError"):
            networks.imagenet("squeezenet1_1")
        assert time.perf_counter() - started < 5 and socket.getdefaulttimeout() == before


def test_a_look_up_of_the_name_that_hangs_counts_as_no_network(nowhere, monkeypatch):
    monkeypatch.setattr(networks, "urlopen", lambda *_, **__: threading.Event().wait(8))
    monkeypatch.setattr(networks, "SILENCE", 0.1)
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match="TimeoutError"):
        networks.imagenet("squeezenet1_1")
    assert time.perf_counter() - started < 5
