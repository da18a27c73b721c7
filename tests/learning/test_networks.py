"""The networks against their layers written out in NumPy, and against parameters counted by hand."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torchvision import models

from lib import paths
from lib.learning import networks
from lib.learning.networks import SEQUENCERS, AllConvNet, RadiomicSequencer, with_gap
from lib.methods import cam, clear


def forward(network, image):
    """Convolution-ReLU-max-pool blocks but for the last pooling, then class kernels: f (K, h, w) and z (N, h, w)."""
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    normalised = isinstance(network, RadiomicSequencer)
    layers = range(0, (3 + normalised) * len(network.config["channels"]), 3 + normalised)
    f = image.double().numpy()
    for layer in layers:
        z = np.array([sum(map(same, f, kernel)) for kernel in weights[f"features.{layer}.weight"]])
        z = (
            norm(z, weights, f"features.{layer + 1}")
            if normalised
            else z + weights[f"features.{layer}.bias"][:, None, None]
        )
        f = np.maximum(z, 0)
        if layer != layers[-1]:
            _, height, width = f.shape
            f = (
                f[:, : height // 2 * 2, : width // 2 * 2]
                .reshape(len(f), height // 2, 2, width // 2, 2)
                .max((2, 4))
            )
    return f, np.einsum("nk,khw->nhw", weights["head.weight"][:, :, 0, 0], f) + weights[
        "head.bias"
    ][:, None, None]


def norm(z, weights, name):
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, gain, bias = (
        weights[f"{name}.{statistic}"][:, None, None] for statistic in names
    )
    return (z - mean) / np.sqrt(variance + 1e-5) * gain + bias


def same(map, kernel):
    return correlate2d(map, kernel, mode="same")


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
    np.testing.assert_allclose(network.features(image[None])[0], f, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        network.head(network.features(image[None]))[0], z, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(network(image[None])[0], z.mean((1, 2)), rtol=1e-4, atol=1e-5)
    if isinstance(network, RadiomicSequencer):
        np.testing.assert_allclose(
            network.sequence(image[None])[0], f.mean((1, 2)), rtol=1e-4, atol=1e-5
        )


def test_the_scores_are_an_affine_function_of_the_radiomic_sequence():
    network = built(RadiomicSequencer)
    images = torch.randn(3, 3, 40, 56)
    s = network.sequence(images)
    assert s.shape == (3, 96) and (s >= 0).all()
    weight, bias = network.head.weight[:, :, 0, 0], network.head.bias
    torch.testing.assert_close(network(images), s @ weight.T + bias)


def test_parameters_counted_by_hand():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert (
        count(AllConvNet())
        == (1 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 96 + (96 + 1) * 10
        == 75_178
    )
    blocks = (
        (3 * 9 + 2) * 16
        + (16 * 9 + 2) * 32
        + (32 * 9 + 2) * 48
        + (48 * 9 + 2) * 64
        + (64 * 9 + 2) * 96
    )
    assert count(RadiomicSequencer()) == blocks + (96 + 1) * 5 == 102_805


@pytest.mark.parametrize("size", [(28, 28), (29, 31), (4, 7), (5, 64)])
def test_every_block_but_the_last_halves_the_map_and_any_size_has_its_scores(size):
    network = AllConvNet().eval()
    images = torch.zeros(2, 1, *size)
    assert network.features(images).shape == (2, 96, size[0] // 4, size[1] // 4)
    assert network(images).shape == (2, 10)
    assert RadiomicSequencer().eval()(torch.zeros(1, 3, 16 + size[0], 16 + size[1])).shape == (1, 5)


@pytest.mark.parametrize(
    ("kind", "shape"), [(AllConvNet, (1, 28, 28)), (RadiomicSequencer, (3, 32, 32))]
)
def test_the_last_convolution_has_one_kernel_a_class(kind, shape):
    network = built(kind)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert (
        convolutions[-1] is network.head and network.head.out_channels == network.config["classes"]
    )
    images = torch.randn(2, *shape)
    before = network(images)
    network.head.weight[2], network.head.bias[2] = 0, 7
    after = network(images)
    others = [c for c in range(network.config["classes"]) if c != 2]
    assert torch.equal(after[:, others], before[:, others])
    assert (after[:, 2] == 7).all() and (before[:, 2] != 7).all()


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
    assert not network.head.weight.any()
    assert not any(
        module.bias.any() for module in network.modules() if isinstance(module, torch.nn.Conv2d)
    )
    for layer in [module for module in network.features if isinstance(module, torch.nn.Conv2d)]:
        inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        tolerance = 4 / np.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(np.sqrt(2 / inputs), rel=tolerance)


@pytest.mark.parametrize(
    "name, size, places", [("alexnet", 224, 13), ("vgg11_bn", 224, 14), ("vgg16", 64, 4)]
)
def test_with_gap_is_the_papers_network_and_has_class_activation_maps(name, size, places):
    """13x13 maps for AlexNet-GAP and 14x14 for VGGnet-GAP, as section 3 of the paper says."""
    original = models.get_model(
        name, weights=None, **({} if name == "alexnet" else {"init_weights": False})
    )
    network = with_gap(original, classes=7, kernels=32)
    scores, maps = cam.class_activation_maps(network, torch.rand(1, 3, size, size))
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
    block = next(layer for layer in network.features if hasattr(layer, "steps"))
    first, norm_1, _, second, norm_2 = block.steps
    with torch.no_grad():
        added = norm_2(second(norm_1(first(x)).clamp(min=0)))
        torch.testing.assert_close(block(x), (x + added).clamp(min=0))


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    torch.manual_seed(3)
    trained = models.squeezenet1_1(weights=None)
    torch.save(trained.state_dict(), tmp_path / "squeezenet.pth")
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    return trained.eval(), str(tmp_path / "squeezenet.pth")


@pytest.mark.parametrize(("body", "layers"), [("squeezenet", 13), ("squeezenet-frozen", 10)])
def test_a_pretrained_sequencer_sees_a_photograph_as_imagenets_network_does(imagenet, body, layers):
    trained, path = imagenet
    mean, std = torch.rand(2, 3, 1, 1) + 0.1
    network, origin = networks.sequencer(body, mean, std, path)
    photograph = torch.rand(1, 3, 96, 80)
    expected = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.no_grad():
        seen = network.eval().features((photograph - mean) / std)
        meant = trained.features[:layers]((photograph - expected[0]) / expected[1])
    torch.testing.assert_close(seen, meant, rtol=1e-3, atol=1e-4)
    assert origin == "squeezenet.pth" and len(network.features) == layers


def test_an_unknown_body_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="body is 'vgg'; choose one of plain, residual, squeezenet, squeezenet-frozen",
    ):
        networks.sequencer("vgg", torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
