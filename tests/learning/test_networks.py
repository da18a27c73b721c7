"""The networks against their layers in NumPy and parameters counted by hand; their weights."""

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.signal import correlate2d
from torchvision import models
from torchvision.transforms._presets import ImageClassification

from lib import paths
from lib.learning import networks
from lib.learning.networks import SEQUENCERS, AllConvNet, RadiomicSequencer, with_gap
from lib.methods import cam, clear


def forward(network, image):
    """Convolution, ReLU, max-pooling but for the last, class kernels: f (K, h, w), z (N, h, w)."""
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    normalised = isinstance(network, RadiomicSequencer)
    layers = range(0, (3 + normalised) * len(network.config["channels"]), 3 + normalised)
    f = image.double().numpy()
    for layer in layers:
        z = np.array([sum(map(same, f, kernel)) for kernel in weights[f"features.{layer}.weight"]])
        if normalised:
            z = norm(z, weights, f"features.{layer + 1}")
        else:
            z += weights[f"features.{layer}.bias"][:, None, None]
        f = np.maximum(z, 0)
        if layer != layers[-1]:
            height, width = f.shape[1] // 2, f.shape[2] // 2
            f = f[:, : 2 * height, : 2 * width].reshape(len(f), height, 2, width, 2).max((2, 4))
    kernels, bias = weights["head.weight"][:, :, 0, 0], weights["head.bias"]
    return f, np.einsum("nk,khw->nhw", kernels, f) + bias[:, None, None]


def norm(z, weights, name):
    mean, variance, gain, bias = (
        weights[f"{name}.{statistic}"][:, None, None]
        for statistic in ("running_mean", "running_var", "weight", "bias")
    )
    return (z - mean) / np.sqrt(variance + 1e-5) * gain + bias


def same(plane, kernel):
    return correlate2d(plane, kernel, mode="same")


def built(kind, *arguments, seed=0):
    torch.manual_seed(seed)
    network = kind(*arguments)
    for name, value in network.named_parameters():
        if name.endswith("bias") or name.startswith("head"):
            torch.nn.init.normal_(value, std=0.3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    return network.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("network", "image"),
    [
        (built(AllConvNet, 4, 2, (3, 5)), torch.randn(2, 13, 10)),
        (built(AllConvNet, 3, 1, (4,)), torch.randn(1, 7, 5)),
        (built(RadiomicSequencer, 5, 3, (2, 3, 4)), torch.randn(3, 17, 22)),
    ],
)
def test_scores_and_sequences_are_those_of_the_layers_written_out(network, image):
    f, z = forward(network, image)
    features = network.features(image[None])
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(features[0], f, **close)
    np.testing.assert_allclose(network.head(features)[0], z, **close)
    np.testing.assert_allclose(network(image[None])[0], z.mean((1, 2)), **close)
    if isinstance(network, RadiomicSequencer):
        np.testing.assert_allclose(network.sequence(image[None])[0], f.mean((1, 2)), **close)


def test_parameters_counted_by_hand():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    blocks = (1 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 96
    assert count(AllConvNet()) == blocks + (96 + 1) * 10 == 75_178
    pairs = [(3, 16), (16, 32), (32, 48), (48, 64), (64, 96)]
    blocks = sum((before * 9 + 2) * after for before, after in pairs)
    assert count(RadiomicSequencer()) == blocks + (96 + 1) * 5 == 102_805


@pytest.mark.parametrize("size", [(28, 28), (29, 31), (4, 7), (5, 64)])
def test_every_block_but_the_last_halves_the_map_and_any_size_has_its_scores(size):
    network = AllConvNet().eval()
    images = torch.zeros(2, 1, *size)
    assert network.features(images).shape == (2, 96, size[0] // 4, size[1] // 4)
    assert network(images).shape == (2, 10)
    assert RadiomicSequencer().eval()(torch.zeros(1, 3, 16 + size[0], 16 + size[1])).shape == (1, 5)


@pytest.mark.parametrize(
    "network", [built(AllConvNet, 3, 2, (4, 6)), built(RadiomicSequencer, 5, 1, (2, 3, 4))]
)
def test_the_configuration_rebuilds_the_network(network):
    again = type(network)(**network.config)
    again.eval().load_state_dict(network.state_dict())
    images = torch.randn(2, network.config["in_channels"], 16, 16)
    assert torch.equal(again(images), network(images))


def test_kernels_start_with_the_deviation_of_he_and_biases_and_class_kernels_at_zero():
    torch.manual_seed(0)
    network = AllConvNet()
    assert not network.head.weight.any() and not network.head.bias.any()
    for layer in network.features:
        if isinstance(layer, torch.nn.Conv2d):
            assert not layer.bias.any()
            inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
            tolerance = 4 / np.sqrt(2 * layer.weight.numel())
            assert layer.weight.std().item() == pytest.approx(np.sqrt(2 / inputs), rel=tolerance)


@pytest.mark.parametrize("body", SEQUENCERS)
def test_every_sequencer_ends_in_one_kernel_a_grade_and_has_attentive_responses(body):
    torch.manual_seed(1)
    network, images = SEQUENCERS[body]().eval(), torch.rand(2, 3, 64, 64)
    assert torch.equal(network(images), torch.zeros(2, 5))  # grade kernels start at zero
    torch.nn.init.normal_(network.head.weight)
    scores, responses = clear.attentive_responses(network, images)
    assert network.head.weight.shape[::2] == (5, 1) and responses.shape == (2, 5, 64, 64)
    with torch.no_grad():
        sequence = network.sequence(images)
        by_hand = sequence @ network.head.weight[:, :, 0, 0].T + network.head.bias
        torch.testing.assert_close(network(images), by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, by_hand, rtol=1e-4, atol=1e-4)


def test_a_residual_block_is_what_it_adds_to_its_input():
    torch.manual_seed(2)
    network, x = SEQUENCERS["residual"]().eval(), torch.rand(1, 32, 7, 9)
    blocks = [layer for layer in network.features if hasattr(layer, "steps")]
    first, norm_1, _, second, norm_2 = blocks[0].steps
    with torch.no_grad():
        added = norm_2(second(norm_1(first(x)).clamp(min=0)))
        torch.testing.assert_close(blocks[0](x), (x + added).clamp(min=0))
    assert [block.steps[0].in_channels for block in blocks] == [32, 48, 64, 96]


@pytest.mark.parametrize(("name", "places"), [("alexnet", 13), ("vgg11_bn", 14)])
def test_with_gap_is_the_papers_network_and_has_class_activation_maps(name, places):
    """13x13 maps for AlexNet-GAP and 14x14 for VGGnet-GAP, as section 3 of the paper says."""
    options = {} if name == "alexnet" else {"init_weights": False}
    original = models.get_model(name, weights=None, **options)
    network = with_gap(original, classes=7, kernels=32)
    scores, maps = cam.class_activation_maps(network, torch.rand(1, 3, 224, 224))
    assert maps.shape == (1, 7, places, places)
    torch.testing.assert_close(maps.mean((2, 3)) + network[-1].bias, scores, rtol=1e-4, atol=1e-6)
    assert network[0].weight is original.features[0].weight
    default = with_gap(original, 1000)
    assert [tuple(p.shape) for p in list(default.parameters())[-4:]] == [
        (1024, 256 if name == "alexnet" else 512, 3, 3), (1024,), (1000, 1024), (1000,)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_with_gap_refuses_networks_of_another_make(name):
    with pytest.raises(ValueError, match="is not built as AlexNet and VGG are"):
        with_gap(models.get_model(name, weights=None), 7)


# Photographs and weights of ImageNet


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 4), (30, 40, 1)])
def test_grey_and_rgba_photographs_are_refused(shape):
    with pytest.raises(ValueError, match=r"not uint8 .*convert\('RGB'\)"):
        networks.imagenet_input(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="uint16"):
        networks.imagenet_input(np.zeros((30, 40, 3), np.uint16))


def test_a_photograph_is_prepared_as_torchvision_prepares_it():
    photograph = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    preset = ImageClassification(crop_size=224, resize_size=224)
    expected = preset(torch.tensor(photograph).permute(2, 0, 1))
    found = networks.imagenet_input(photograph)[0]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # theirs rounds to uint8


@pytest.fixture(scope="module")
def squeezenet():
    torch.manual_seed(3)
    return models.squeezenet1_1(weights=None).eval()


@pytest.mark.parametrize(("body", "layers"), [("squeezenet", 13), ("squeezenet-frozen", 10)])
def test_a_pretrained_sequencer_sees_a_photograph_as_imagenets_network_does(
    squeezenet, tmp_path, body, layers
):
    torch.save(squeezenet.state_dict(), tmp_path / "squeezenet.pth")
    mean, std = torch.rand(2, 3, 1, 1) + 0.1
    path = str(tmp_path / "squeezenet.pth")
    network, origin = networks.build_sequencer(body, mean, std, path)
    photograph = torch.rand(1, 3, 96, 80)
    m, s = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.no_grad():
        seen = network.eval().features((photograph - mean) / std)
        meant = squeezenet.features[:layers]((photograph - m) / s)
    torch.testing.assert_close(seen, meant, rtol=1e-3, atol=1e-4)
    assert origin == "squeezenet.pth" and len(network.features) == layers


def test_the_other_sequencers_start_at_random_and_an_unknown_body_is_refused():
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    for body in ("plain", "residual"):
        network, origin = networks.build_sequencer(body, mean, std)
        assert type(network) is SEQUENCERS[body] and origin == "random weights"
    known = "choose one of plain, residual, squeezenet, squeezenet-frozen"
    with pytest.raises(ValueError, match=f"body is 'vgg'; {known}"):
        networks.build_sequencer("vgg", mean, std)


def test_a_squeezenet_may_start_at_random_and_drop_features_in_training_alone():
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    torch.manual_seed(0)
    network, origin = networks.build_sequencer("squeezenet", mean, std, networks.RANDOM, 0.5)
    assert origin == "random weights"
    plain = networks.SEQUENCERS["squeezenet"]()
    plain.load_state_dict(network.state_dict())  # dropout has no weights
    network.eval(), plain.eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(network.features(images), plain.features(images))
    kept = plain.features(images)
    dropped = network.train().features(images)
    zeros = (dropped == 0) & (kept != 0)
    assert 0.4 < zeros.sum() / (kept != 0).sum() < 0.6
    assert torch.allclose(dropped[~zeros], 2 * kept[~zeros], rtol=1e-4)


def test_a_dropout_that_a_body_has_not_is_refused():
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    for body in ("plain", "residual", "squeezenet-frozen"):
        with pytest.raises(ValueError, match=f"dropout is 0.3, and {body} has none"):
            networks.build_sequencer(body, mean, std, networks.RANDOM, 0.3)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_are_read_from_a_path_and_from_the_data_sets_folder(
    squeezenet, kind, tmp_path, monkeypatch
):
    path = tmp_path / f"imagenet/squeezenet1_1.{kind}"
    path.parent.mkdir()
    (save_file if kind == "safetensors" else torch.save)(squeezenet.state_dict(), path)
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    given = "" if kind == "safetensors" else str(path)
    network, origin = networks.load_imagenet("squeezenet1_1", given)
    images = torch.rand(1, 3, 64, 64)
    assert origin == f"squeezenet1_1.{kind}" and not network.training
    assert torch.equal(network(images), squeezenet(images))


def test_weights_of_another_network_and_files_of_another_kind_are_refused_with_the_first_keys(
    squeezenet, tmp_path
):
    torch.save(squeezenet.state_dict(), tmp_path / "given.pth")
    torch.save({"epoch": 3, "state_dict": squeezenet.state_dict()}, tmp_path / "wrapped.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    for architecture, name, error, message in [
        ("resnet18", "given.pth", ValueError, r"does not fit ResNet.*features\.0\.w.*conv1\.w"),
        ("squeezenet1_1", "wrapped.pth", ValueError, r"epoch, state_dict, .* instead of features"),
        ("squeezenet1_1", "text.safetensors", ValueError, "nothing readable"),
        ("squeezenet1_1", "missing.pth", FileNotFoundError, r"no weights at .*missing\.pth"),
        ("resnet99", "", ValueError, "no classification network 'resnet99'"),
    ]:
        with pytest.raises(error, match=message):
            networks.load_imagenet(architecture, str(tmp_path / name) if name else "")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*missing\.pth"):
        networks.fill_from_file(squeezenet, tmp_path / "missing.pth")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Neither a data set's folder nor a cache holds weights."""
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_a_damaged_download_is_named_and_to_be_deleted(nowhere, tmp_path):
    cached = tmp_path / "checkpoints" / Path(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name
    cached.parent.mkdir()
    cached.write_bytes(b"PK\x03\x04 cut off")
    message = rf"{cached.name}, torchvision's download, cannot be used .*Delete it"
    with pytest.raises(ValueError, match=message):
        networks.load_imagenet("squeezenet1_1")


def test_without_a_network_the_steps_to_get_the_weights_are_named(nowhere, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(networks, "urlopen", refuse)
    message = r"(?s)URLError.*1\. download https://.*2\. .*3\. .*COMPANION_DATASETS"
    with pytest.raises(ConnectionError, match=message):
        networks.load_imagenet("squeezenet1_1")


def test_a_server_that_accepts_and_stays_silent_counts_as_no_network(nowhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = SimpleNamespace(url=f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth")
        monkeypatch.setattr(models, "get_model_weights", lambda architecture: [source])
        monkeypatch.setattr(networks, "_SILENCE", 0.3)
        started, before = time.perf_counter(), socket.getdefaulttimeout()
        with pytest.raises(ConnectionError, match="TimeoutError"):
            networks.load_imagenet("squeezenet1_1")
        assert time.perf_counter() - started < 5 and socket.getdefaulttimeout() == before


def test_a_look_up_of_the_name_that_hangs_counts_as_no_network(nowhere, monkeypatch):
    monkeypatch.setattr(networks, "urlopen", lambda *_, **__: threading.Event().wait(8))
    monkeypatch.setattr(networks, "_SILENCE", 0.1)
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match="TimeoutError"):
        networks.load_imagenet("squeezenet1_1")
    assert time.perf_counter() - started < 5
