"""Deletion and insertion on a linear network worked by hand; a sanity check that an edge detector fails."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from lib.evaluation import faithfulness
from lib.learning.networks import AllConvNet


class Linear(nn.Module):
    """Two classes on 2x2 images: the scores are the sum of weight x pixel, and 0."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        score = (images[:, 0] * self.weight).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], 1)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


WEIGHT = [[1.0, 2.0], [-1.0, 0.5]]
IMAGE = torch.tensor([[[[2.0, 1.0], [3.0, 4.0]]]])  # weight x pixel: 2, 2, -3, 2; together 3
ORDER = torch.tensor(
    [[[3.0, 1.0], [-2.0, 2.0]]]
)  # the first pixel goes first, then the last, the second, the third


def trapezoid(values):
    return sum((a + b) / 2 for a, b in itertools.pairwise(values)) / (len(values) - 1)


def test_deletion_by_hand():
    curve, area = faithfulness.deletion(Linear(WEIGHT), IMAGE, ORDER, [0], patch=0.0, steps=4)
    by_hand = [sigmoid(score) for score in (3, 1, -1, -3, 0)]
    assert curve[0].tolist() == pytest.approx(by_hand)
    assert area.tolist() == pytest.approx([trapezoid(by_hand)])


def test_insertion_by_hand():
    curve, area = faithfulness.insertion(Linear(WEIGHT), IMAGE, ORDER, [1], patch=0.0, steps=4)
    by_hand = [1 - sigmoid(score) for score in (0, 2, 4, 6, 3)]
    assert curve[0].tolist() == pytest.approx(by_hand)
    assert area.tolist() == pytest.approx([trapezoid(by_hand)])


def test_a_pixel_that_is_taken_away_becomes_the_patch():
    patch = torch.tensor([[[[0.0, 1.0], [1.0, 2.0]]]])  # weight x patch: 0, 2, -1, 1
    curve, _ = faithfulness.deletion(Linear(WEIGHT), IMAGE, ORDER, [0], patch, steps=4)
    assert curve[0].tolist() == pytest.approx([sigmoid(score) for score in (3, 1, 0, 0, 2)])
    grey, _ = faithfulness.deletion(Linear(WEIGHT), IMAGE, ORDER, [0], patch=1.0, steps=1)
    assert grey[0].tolist() == pytest.approx([sigmoid(3), sigmoid(2.5)])


def test_steps_that_do_not_divide_the_pixels_take_whole_pixels():
    curve, area = faithfulness.deletion(Linear(WEIGHT), IMAGE, ORDER, [0], patch=0.0, steps=3)
    by_hand = [sigmoid(score) for score in (3, 1, -1, 0)]  # after 0, 1, 2 and 4 pixels
    assert curve[0].tolist() == pytest.approx(by_hand)
    assert area.item() == pytest.approx(trapezoid(by_hand))


def random_network(seed=0, channels=(6, 8, 8)):
    torch.manual_seed(seed)
    network = AllConvNet(4, 3, channels, normalised=True)
    nn.init.normal_(network.head.weight)
    return network.eval()


def literal_area(network, image, order, c, patch, steps, insert):
    """RISE's Algorithm 1 as a loop over pixels: change the next ones, ask the network, add up trapezoids."""
    now, goal = (patch.clone(), image) if insert else (image.clone(), patch)
    ranked = sorted(
        (-order[row, column].item(), row, column) for row in range(8) for column in range(8)
    )
    values = []
    for step in range(steps + 1):
        for _, row, column in ranked[(step - 1) * 64 // steps if step else 0 : step * 64 // steps]:
            now[:, row, column] = goal[:, row, column]
        with torch.no_grad():
            values.append(network(now[None]).softmax(1)[0, c].item())
    return trapezoid(values)


@pytest.mark.parametrize("insert", [False, True])
def test_areas_are_those_of_a_literal_loop(insert):
    generator = torch.Generator().manual_seed(1)
    network, images = random_network(), torch.randn(5, 3, 8, 8, generator=generator)
    patch, maps = (
        torch.randn(5, 3, 8, 8, generator=generator),
        torch.randn(5, 8, 8, generator=generator),
    )
    classes = torch.tensor([0, 3, 1, 2, 2])
    score = faithfulness.insertion if insert else faithfulness.deletion
    curves, areas = score(network, images, maps, classes, patch, steps=10, batch_size=2)
    assert curves.shape == (5, 11)
    by_hand = [
        literal_area(network, *row, 10, insert)
        for row in zip(images, maps, classes.tolist(), patch, strict=True)
    ]
    assert areas.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_faithful_order_beats_noise_and_its_reverse_in_both():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator)
    network, images = Linear(weight.tolist()), torch.randn(20, 1, 16, 16, generator=generator).abs()
    faithful, noise = images[:, 0] * weight, faithfulness.random_map(images, generator)
    areas = [
        [
            score(network, images, maps, [0] * 20, 0.0)[1].mean().item()
            for maps in (faithful, noise, -faithful)
        ]
        for score in (faithfulness.deletion, faithfulness.insertion)
    ]
    assert areas[0] == sorted(areas[0], reverse=True)[::-1] and areas[0][2] - areas[0][0] > 0.3
    assert areas[1] == sorted(areas[1], reverse=True) and areas[1][0] - areas[1][2] > 0.3


def test_equal_responses_go_in_no_direction():
    # weight only in the upper half: from top to bottom the probability would fall to 1/2 after half of the pixels
    weight = torch.zeros(16, 16)
    weight[:8] = 1 / 16
    network, images = Linear(weight.tolist()), torch.ones(1, 1, 16, 16)
    curve, _ = faithfulness.deletion(network, images, torch.zeros(1, 16, 16), [0], 0.0, steps=4)
    by_chance = [sigmoid(8 * (1 - k / 4)) for k in range(5)]
    assert curve[0].tolist() == pytest.approx(by_chance, abs=0.1)
    again, _ = faithfulness.deletion(network, images, torch.zeros(1, 16, 16), [0], 0.0, steps=4)
    assert torch.equal(curve, again)


def test_deletion_runs_in_batches_and_leaves_the_network_and_the_images_as_they_were():
    linear = Linear(torch.ones(8, 8).tolist())
    faithfulness.deletion(
        linear, torch.ones(5, 1, 8, 8), torch.rand(5, 8, 8), [0] * 5, 0.0, steps=2, batch_size=2
    )
    assert linear.seen == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    network, images = random_network().train(), torch.randn(4, 3, 8, 8)
    before, kept = copy.deepcopy(network.state_dict()), images.clone()
    faithfulness.insertion(network, images, torch.rand(4, 8, 8), [0] * 4, 0.0, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training and network.features[1].training
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maps": torch.rand(2, 8, 7)}, r"maps \(2, 8, 7\)"),
        ({"maps": torch.full((2, 8, 8), torch.nan)}, "must be finite"),
        ({"classes": [0]}, r"classes \(1,\)"),
        ({"classes": [0, 4]}, r"\[4\] out of range; the network has 4 classes"),
        ({"classes": [0, -1]}, "out of range"),
        ({"patch": torch.zeros(3)}, r"patch \(3,\) does not broadcast to images \(2, 3, 8, 8\)"),
        ({"steps": 0}, "steps is 0; give 1 to 64"),
        ({"steps": 65}, "steps is 65"),
        ({"images": torch.full((2, 3, 8, 8), torch.nan)}, "NaN"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "floating point"),
    ],
)
@pytest.mark.parametrize("score", [faithfulness.deletion, faithfulness.insertion])
def test_deletion_and_insertion_refuse_what_does_not_fit(score, changed, message):
    good = {
        "images": torch.zeros(2, 3, 8, 8),
        "maps": torch.rand(2, 8, 8),
        "classes": [0, 1],
        "patch": 0.0,
        "steps": 4,
    }
    with pytest.raises(ValueError, match=message):
        score(random_network(), **(good | changed))


def test_a_network_that_answers_nan_is_named():
    network = random_network()
    network.head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="AllConvNet answers with NaN"):
        faithfulness.deletion(
            network, torch.zeros(1, 3, 8, 8), torch.rand(1, 8, 8), [0], 0.0, steps=1
        )


# --- similarity


def spearman(a, b):
    """Pearson's correlation of the ranks, written out."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    return (a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum())


def test_similarity_is_spearmans_of_the_absolute_and_of_the_positive_map():
    rng = np.random.default_rng(0)
    maps, others = rng.normal(size=(2, 3, 6, 7))
    where = rng.random((3, 6, 7)) < 0.7
    absolute, positive = faithfulness.similarity(torch.tensor(maps), others, where)
    pairs = [(a[w], b[w]) for a, b, w in zip(maps, others, where, strict=True)]
    assert absolute == pytest.approx(np.mean([spearman(abs(a), abs(b)) for a, b in pairs]))
    assert positive == pytest.approx(
        np.mean([spearman(a.clip(min=0), b.clip(min=0)) for a, b in pairs])
    )


def test_similarity_is_1_to_any_rising_function_of_the_map_and_sees_signs_in_the_positive_part_only():
    maps = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0))
    assert faithfulness.similarity(maps, maps**3) == pytest.approx((1, 1))
    absolute, positive = faithfulness.similarity(maps, -maps)
    assert absolute == pytest.approx(1) and positive < -0.5


@pytest.mark.filterwarnings("error")
def test_a_map_without_structure_is_like_nothing():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert faithfulness.similarity(maps, torch.zeros(2, 4, 4)) == (0, 0)
    half = torch.stack([maps[0], torch.zeros(4, 4)])
    assert faithfulness.similarity(half, maps) == pytest.approx((1, 1))
    assert all(math.isnan(value) for value in faithfulness.similarity(torch.zeros(2, 4, 4), maps))


def test_the_black_frame_makes_unrelated_maps_alike_unless_it_is_left_out():
    rng = np.random.default_rng(0)
    where = np.hypot(*(np.mgrid[:60, :60] - 29.5)) < 29
    maps, others = rng.random((2, 4, 60, 60)) * where
    where = np.broadcast_to(where, maps.shape)
    assert min(faithfulness.similarity(maps, others)) > 0.4
    assert max(np.abs(faithfulness.similarity(maps, others, where))) < 0.05


@pytest.mark.parametrize(
    ("maps", "others", "where", "message"),
    [
        (torch.rand(2, 4, 4), torch.rand(2, 4, 5), None, r"others \(2, 4, 5\)"),
        (torch.rand(4, 4), torch.rand(4, 4), None, r"must be \(B, H, W\)"),
        (torch.rand(2, 4, 4), torch.rand(2, 4, 4), np.ones((4, 4)), r"where \(4, 4\)"),
        (torch.full((2, 4, 4), torch.nan), torch.rand(2, 4, 4), None, "NaN"),
    ],
)
def test_similarity_refuses_what_does_not_fit(maps, others, where, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.similarity(maps, others, where)


# --- sanity


def blobs(n=6, size=24, seed=0):
    """Images with edges: bright discs on noise."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.2, (n, 3, size, size))
    rows, columns = np.mgrid[:size, :size]
    for image in images:
        for x, y, radius in rng.uniform([3, 3, 2], [size - 3, size - 3, 5], (3, 3)):
            image += 2.0 * (np.hypot(columns - x, rows - y) < radius)
    return torch.tensor(images, dtype=torch.float32)


def gradient(network, images):
    """Simonyan's saliency without its absolute value: the gradient of the first class' score, summed over channels."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        return torch.autograd.grad(network(images)[:, 0].sum(), images)[0].sum(1)


def edges(network, images):
    return faithfulness.edges(images)


def test_a_gradient_passes_the_sanity_check_and_an_edge_detector_fails_it():
    network, images = random_network(), blobs()
    good = faithfulness.sanity(network, images, gradient)
    assert faithfulness.passes(good)
    assert good.absolute.iloc[-1] < 0.3
    bad = faithfulness.sanity(network, images, edges)
    assert (bad[["absolute", "positive"]] == 1).to_numpy().all()
    assert (bad[["chance_absolute", "chance_positive"]] < 0.5).to_numpy().all()
    assert not faithfulness.passes(bad)


def test_edges_mixed_into_a_gradient_fail_it_too():
    def mixed(network, images):
        maps = faithfulness.edges(images)
        saliency = gradient(network, images).abs()
        return maps / maps.mean() + 0.3 * saliency / saliency.mean()

    assert not faithfulness.passes(faithfulness.sanity(random_network(), blobs(), mixed))


def test_a_map_that_is_the_same_for_all_images_and_weights_fails():
    table = faithfulness.sanity(
        random_network(),
        blobs(),
        lambda network, images: torch.arange(576.0).view(24, 24).expand(6, -1, -1),
    )
    assert not faithfulness.passes(table)
    silent = faithfulness.sanity(
        random_network(), blobs(), lambda network, images: torch.zeros(6, 24, 24)
    )
    assert not faithfulness.passes(silent)


def test_layers_become_random_from_the_last_to_the_first_and_stay_so():
    network, seen = AllConvNet(4, 3, (6, 8), normalised=True), []
    trained = copy.deepcopy(network.state_dict())
    for value in trained.values():
        value.copy_(torch.full_like(value, 2))
    network.load_state_dict(trained)

    def watch(current, images):
        now = current.state_dict()
        changed = {
            name.rpartition(".")[0] for name in now if not torch.equal(now[name], trained[name])
        }
        seen.append((changed, current.training, current is network, now["head.weight"].clone()))
        return torch.randn(2, 4, 4)

    network.train()
    table = faithfulness.sanity(network, torch.randn(2, 3, 8, 8), watch)
    assert table.layer.tolist() == ["head", "features.5", "features.4", "features.1", "features.0"]
    assert [changed for changed, *_ in seen] == [set(table.layer[:k]) for k in range(6)]
    assert not any(training for _, training, *_ in seen)
    assert [same for _, _, same, _ in seen] == [True] + [False] * 5
    assert (seen[1][3] != 0).all() and seen[1][3].unique().numel() > 1
    assert network.training
    assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())


def test_a_head_that_starts_at_zero_becomes_random():
    heads = []

    def watch(network, images):
        heads.append(network.head.weight.detach().clone())
        return torch.rand(2, 8, 8)

    faithfulness.sanity(AllConvNet(4, 3, (6, 8)), torch.randn(2, 3, 8, 8), watch)
    assert not heads[0].any() and heads[1].abs().min() > 0
    assert all(torch.equal(head, heads[1]) for head in heads[2:])


def test_the_seed_alone_decides_and_the_generator_is_left_as_it_was():
    network, images = random_network(), blobs(3)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = faithfulness.sanity(network, images, gradient, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert first.equals(faithfulness.sanity(network, images, gradient, seed=1))
    assert not first.equals(faithfulness.sanity(network, images, gradient, seed=2))


def test_chance_is_the_likeness_of_different_images_maps_within_where():
    network, images = random_network(), blobs(4)
    where = np.zeros((4, 24, 24), bool)
    where[:, 4:20, 6:18] = True
    table = faithfulness.sanity(network, images, edges, where)
    maps = faithfulness.edges(images).numpy()[:, 4:20, 6:18].reshape(4, -1)
    chance = np.mean([spearman(maps[i], maps[i - 2]) for i in range(4)])
    assert table.chance_absolute.tolist() == pytest.approx([chance] * len(table))


def test_what_changes_outside_where_does_not_count():
    where = np.zeros((4, 24, 24), bool)
    where[:, :12] = True
    noise = torch.Generator().manual_seed(0)

    def half(network, images):
        return torch.where(
            torch.tensor(where), faithfulness.edges(images), faithfulness.random_map(images, noise)
        )

    table = faithfulness.sanity(random_network(), blobs(4), half, where)
    assert table.absolute.tolist() == pytest.approx([1] * len(table))


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.token = nn.Conv2d(3, 2, 1), nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        (random_network(), torch.zeros(1, 3, 8, 8), "there are 1 images"),
        (nn.ReLU(), torch.zeros(2, 3, 8, 8), "ReLU has 0 layers"),
        (
            nn.Sequential(Token()),
            torch.zeros(2, 3, 8, 8),
            r"of which \['0'\] have no reset_parameters",
        ),
    ],
)
def test_sanity_refuses_what_it_cannot_randomise(network, images, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.sanity(network, images, edges)


# --- controls


def test_edges_of_a_step_and_of_a_slope_by_hand():
    step = torch.zeros(1, 3, 6, 8)
    step[..., 4:] = 3
    step[:, 0] *= 2  # the mean of the channels rises by 4
    magnitude = faithfulness.edges(step)[0]
    assert magnitude.dtype == torch.float32 and magnitude.shape == (6, 8)
    assert magnitude[2].tolist() == pytest.approx([0, 0, 0, 16, 16, 0, 0, 0])
    together = faithfulness.edges(torch.cat([step, torch.zeros_like(step)]))
    assert torch.equal(together[0], magnitude) and not together[1].any()
    slope = (torch.arange(8.0)[:, None] * 0.5 + torch.arange(8.0)).expand(2, 1, 8, 8)
    assert faithfulness.edges(slope)[1, 3, 3] == pytest.approx(8 * math.hypot(1, 0.5))


def test_noise_has_the_images_size_and_the_generators_values():
    images = torch.zeros(3, 2, 5, 7)
    one, two = (faithfulness.random_map(images, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert one.shape == (3, 5, 7) and not torch.equal(one, two)
    assert torch.equal(one, faithfulness.random_map(images, torch.Generator().manual_seed(0)))
