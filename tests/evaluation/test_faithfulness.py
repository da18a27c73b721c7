"""Deletion and insertion on a linear network by hand; a sanity check that edges must fail."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from lib.evaluation import faithfulness


class Linear(nn.Module):
    """Two classes: the scores are the sum of weight x pixel, and 0."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight))
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        score = (images[:, 0] * self.weight).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], 1)


def random_network(seed=0):
    """Four classes behind two normalised convolutions; the layers 0, 1, 3, 4 and 8 have weights."""
    torch.manual_seed(seed)
    first = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
    second = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    network = nn.Sequential(*first, *second, *head)
    nn.init.normal_(network[-1].weight)
    return network.eval()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def trapezoid(values):
    return sum((a + b) / 2 for a, b in itertools.pairwise(values)) / (len(values) - 1)


# --- deletion and insertion

WEIGHT = [[1.0, 2.0], [-1.0, 0.5]]
IMAGE = torch.tensor([[[[2.0, 1.0], [3.0, 4.0]]]])  # weight x pixel: 2, 2, -3, 2; together 3
ORDER = torch.tensor(
    [[[3.0, 1.0], [-2.0, 2.0]]]
)  # the first pixel, the last, the second, the third
BASELINE = torch.tensor([[[[0.0, 1.0], [1.0, 2.0]]]])  # weight x pixel: 0, 2, -1, 1


@pytest.mark.parametrize(
    ("baseline", "steps", "scores"),
    [
        (0.0, 4, [3, 1, -1, -3, 0]),
        (BASELINE, 4, [3, 1, 0, 0, 2]),
        (1.0, 1, [3, 2.5]),
        (0.0, 3, [3, 1, -1, 0]),  # after 0, 1, 2 and 4 pixels: only whole ones
    ],
)
def test_deletion_by_hand(baseline, steps, scores):
    curve, area = faithfulness.deletion(Linear(WEIGHT), IMAGE, ORDER, [0], baseline, steps)
    by_hand = [sigmoid(score) for score in scores]
    assert curve[0].tolist() == pytest.approx(by_hand)
    assert area.tolist() == pytest.approx([trapezoid(by_hand)])


def test_insertion_by_hand():
    curve, area = faithfulness.insertion(Linear(WEIGHT), IMAGE, ORDER, [1], 0.0, steps=4)
    by_hand = [1 - sigmoid(score) for score in (0, 2, 4, 6, 3)]
    assert curve[0].tolist() == pytest.approx(by_hand)
    assert area.tolist() == pytest.approx([trapezoid(by_hand)])


def literal_area(network, now, goal, order, c, steps):
    """RISE's Algorithm 1 as a loop over pixels: change the next ones, ask, add up trapezoids."""
    now, values = now.clone(), []
    ranked = sorted(np.ndindex(8, 8), key=lambda place: -order[place].item())
    for step in range(steps + 1):
        for row, column in ranked[: step * 64 // steps]:
            now[:, row, column] = goal[:, row, column]
        with torch.no_grad():
            values.append(network(now[None]).softmax(1)[0, c].item())
    return trapezoid(values)


@pytest.mark.parametrize("insert", [False, True])
def test_areas_are_those_of_a_literal_loop(insert):
    generator = torch.Generator().manual_seed(1)
    images, baseline = torch.randn(2, 5, 3, 8, 8, generator=generator)
    maps = torch.randn(5, 8, 8, generator=generator)
    network, classes = random_network(), [0, 3, 1, 2, 2]
    score = faithfulness.insertion if insert else faithfulness.deletion
    curves, areas = score(
        network, images, maps.numpy(), torch.tensor(classes), baseline, steps=10, batch_size=2
    )
    assert curves.shape == (5, 11)
    start, goal = (baseline, images) if insert else (images, baseline)
    rows = zip(start, goal, maps, classes, strict=True)
    by_hand = [literal_area(network, *row, steps=10) for row in rows]
    assert areas.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_faithful_order_beats_noise_and_its_reverse_in_both():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator)
    network, images = Linear(weight), torch.randn(20, 1, 16, 16, generator=generator).abs()
    faithful, noise = images[:, 0] * weight, faithfulness.random_map(images, generator)

    def areas(score):
        three = [
            score(network, images, maps, [0] * 20, 0.0)[1] for maps in (faithful, noise, -faithful)
        ]
        return [area.mean().item() for area in three]

    best, middle, worst = areas(faithfulness.deletion)
    assert best < middle < worst and worst - best > 0.3
    best, middle, worst = areas(faithfulness.insertion)
    assert best > middle > worst and best - worst > 0.3


def test_equal_responses_go_in_no_direction():
    # Weight in the upper half only: from top to bottom, 1/2 would be reached after half the pixels.
    weight = torch.zeros(16, 16)
    weight[:8] = 1 / 16
    network, images, flat = Linear(weight), torch.ones(1, 1, 16, 16), torch.zeros(1, 16, 16)
    curve, _ = faithfulness.deletion(network, images, flat, [0], 0.0, steps=4)
    by_chance = [sigmoid(8 * (1 - k / 4)) for k in range(5)]
    assert curve[0].tolist() == pytest.approx(by_chance, abs=0.1)
    again, _ = faithfulness.deletion(network, images, flat, [0], 0.0, steps=4)
    assert torch.equal(curve, again)


def test_deletion_runs_in_batches_and_leaves_the_network_and_the_images_as_they_were():
    linear, ones, maps = Linear(torch.ones(8, 8)), torch.ones(5, 1, 8, 8), torch.rand(5, 8, 8)
    faithfulness.deletion(linear, ones, maps, [0] * 5, 0.0, steps=2, batch_size=2)
    assert linear.seen == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    network, images = random_network().train(), torch.randn(4, 3, 8, 8)
    before, kept = copy.deepcopy(network.state_dict()), images.clone()
    faithfulness.insertion(network, images, torch.rand(4, 8, 8), [0] * 4, 0.0, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maps": torch.rand(2, 8, 7)}, r"maps \(2, 8, 7\)"),
        ({"maps": torch.full((2, 8, 8), torch.nan)}, "must be finite"),
        ({"classes": [0]}, r"classes \(1,\)"),
        ({"classes": [0, 4]}, r"\[4\] out of range; the network has 4 classes"),
        ({"classes": [0, -1]}, "out of range"),
        ({"baseline": torch.zeros(3)}, r"baseline \(3,\) does not broadcast to images \(2, 3, 8"),
        ({"steps": 0}, "steps is 0; give 1 to 64"),
        ({"steps": 65}, "steps is 65"),
        ({"baseline": torch.nan}, "baseline holds NaN"),
        ({"images": torch.full((2, 3, 8, 8), torch.nan)}, "NaN"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "floating point"),
    ],
)
@pytest.mark.parametrize("score", [faithfulness.deletion, faithfulness.insertion])
def test_deletion_and_insertion_refuse_what_does_not_fit(score, changed, message):
    good = {"images": torch.zeros(2, 3, 8, 8), "maps": torch.rand(2, 8, 8), "classes": [0, 1]}
    good |= {"baseline": 0.0, "steps": 4}
    with pytest.raises(ValueError, match=message):
        score(random_network(), **(good | changed))


def test_a_network_that_answers_nan_is_named():
    network = Linear(torch.full((8, 8), torch.nan))
    with pytest.raises(ValueError, match="Linear's scores hold NaN or infinite values"):
        faithfulness.deletion(network, torch.zeros(1, 1, 8, 8), torch.rand(1, 8, 8), [0], 0.0)


class Answering(nn.Module):
    """Scores (B, 2) of one pixel, changed by `answer`; it changes its input in place besides."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, images):
        scores = self.answer(images[:, 0, 0, :1] * self.weight)
        images.zero_()
        return scores


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s: (s, s), "Answering answers with a tuple, and one tensor of class scores"),
        (lambda s: {"logits": s}, "answers with a dict of logits"),
        (lambda s: s[:, 0], r"answers with scores \(2,\)"),
        (lambda s: s * torch.nan, "scores hold NaN"),
        (lambda s: (9e4 * s).half(), "scores hold NaN.*float16 overflows"),
    ],
)
def test_answers_that_are_no_finite_scores_are_refused_by_every_score(answer, message):
    images, network = torch.ones(2, 1, 4, 4), Answering(answer)
    with pytest.raises(ValueError, match=message):
        faithfulness.deletion(network, images, torch.rand(2, 4, 4), [0, 1], 0.0, steps=2)
    mask, labels = torch.ones(2, 4, 4, dtype=torch.bool), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=message):
        faithfulness.accuracy_with_and_without(network, images, labels, mask, 0.0)


def test_a_network_that_changes_its_input_and_one_of_half_precision_are_scored_as_any_other():
    images, maps = torch.full((2, 1, 4, 4), 3.0), torch.rand(2, 4, 4)
    network = Answering(lambda s: s)
    curves, _ = faithfulness.deletion(network, images, maps, [0, 1], 0.0, steps=16)
    assert curves[:, 0].tolist() == pytest.approx([sigmoid(6), sigmoid(-6)])
    assert curves[:, -1].tolist() == [0.5, 0.5] and (images == 3).all()
    half, areas = faithfulness.deletion(network.half(), images.half(), maps, [0, 1], 0.0, steps=16)
    assert half.dtype == areas.dtype == torch.float32
    torch.testing.assert_close(half, curves, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_half_precision_are_compared_as_those_of_single(dtype):
    maps, others = torch.rand(2, 6, 6).to(dtype), torch.rand(2, 6, 6).to(dtype)
    expected = faithfulness.similarity(maps.float(), others.float())
    assert faithfulness.similarity(maps, others) == expected
    assert torch.isfinite(faithfulness.edges(torch.rand(2, 3, 6, 6).to(dtype))).all()


# --- similarity


def spearman(a, b):
    """Pearson's correlation of the ranks, written out."""
    a = rankdata(a) - (len(a) + 1) / 2
    b = rankdata(b) - (len(b) + 1) / 2
    return (a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum())


def test_similarity_is_spearmans_of_the_absolute_and_of_the_positive_map():
    rng = np.random.default_rng(0)
    maps, others = rng.normal(size=(2, 3, 6, 7))
    where = rng.random((3, 6, 7)) < 0.7
    absolute, positive = faithfulness.similarity(torch.tensor(maps), others, where)
    pairs = [(a[w], b[w]) for a, b, w in zip(maps, others, where, strict=True)]
    assert absolute == pytest.approx(np.mean([spearman(abs(a), abs(b)) for a, b in pairs]))
    clipped = [(a.clip(min=0), b.clip(min=0)) for a, b in pairs]
    assert positive == pytest.approx(np.mean([spearman(a, b) for a, b in clipped]))


@pytest.mark.filterwarnings("error")
def test_a_map_without_structure_is_like_nothing():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert faithfulness.similarity(maps, torch.zeros(2, 4, 4)) == (0, 0)
    half = torch.stack([maps[0], torch.zeros(4, 4)])
    assert faithfulness.similarity(half, maps) == pytest.approx((1, 1))
    assert np.isnan(faithfulness.similarity(torch.zeros(2, 4, 4), maps)).all()


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
    """Simonyan's saliency without its absolute value, of the first class, summed over channels."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        return torch.autograd.grad(network(images)[:, 0].sum(), images)[0].sum(1)


def edges(network, images):
    return faithfulness.edges(images)


def edges_in_a_gradient(network, images):
    maps, saliency = faithfulness.edges(images), gradient(network, images).abs()
    return maps / maps.mean() + 0.3 * saliency / saliency.mean()


def one_ramp(network, images):
    return torch.arange(576.0).view(24, 24).expand(6, -1, -1)


def nothing(network, images):
    return torch.zeros(6, 24, 24)


@pytest.mark.parametrize(
    ("explain", "passes"),
    [
        (gradient, True),
        (edges, False),
        (edges_in_a_gradient, False),
        (one_ramp, False),
        (nothing, False),
    ],
)
def test_a_gradient_passes_the_sanity_check_and_what_ignores_the_weights_fails(explain, passes):
    table = faithfulness.sanity(random_network(), blobs(), explain)
    assert faithfulness.passes(table) is passes
    if explain is gradient:
        assert table.absolute.iloc[-1] < 0.3
    if explain is edges:
        assert (table[["absolute", "positive"]] == 1).to_numpy().all()
        assert (table[["chance_absolute", "chance_positive"]] < 0.5).to_numpy().all()


def test_layers_become_random_from_the_last_to_the_first_and_stay_so():
    network, seen = random_network(), []
    trained = copy.deepcopy(network.state_dict())
    for value in trained.values():
        value.fill_(2)
    trained["8.weight"].fill_(0)  # a head that starts at zero must become random as well
    network.load_state_dict(trained)

    def watch(current, images):
        now = copy.deepcopy(current.state_dict())
        changed = {name.split(".")[0] for name in now if not torch.equal(now[name], trained[name])}
        seen.append((changed, current.training, current is network, now["8.weight"]))
        return torch.randn(2, 4, 4)

    network.train()
    table = faithfulness.sanity(network, torch.randn(2, 3, 8, 8), watch)
    assert table.layer.tolist() == ["8", "4", "3", "1", "0"]
    changed, training, same, heads = zip(*seen, strict=True)
    assert [*changed] == [set(table.layer[:k]) for k in range(6)]
    assert not any(training)
    assert same == (True, False, False, False, False, False)
    assert not heads[0].any() and heads[1].abs().min() > 0
    assert all(torch.equal(head, heads[1]) for head in heads[2:])
    assert network.training
    assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())


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
    where = torch.zeros(4, 24, 24, dtype=torch.bool)
    where[:, :12] = True
    noise = torch.Generator().manual_seed(0)

    def half(network, images):
        unstable = faithfulness.random_map(images, noise)
        return torch.where(where, faithfulness.edges(images), unstable)

    table = faithfulness.sanity(random_network(), blobs(4), half, where)
    assert table.absolute.tolist() == pytest.approx([1] * len(table))


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.token = nn.Conv2d(3, 2, 1), nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("network", "count", "message"),
    [
        (random_network(), 1, "there are 1 images"),
        (nn.ReLU(), 2, "ReLU has 0 layers"),
        (nn.Sequential(Token()), 2, r"of which \['0'\] have no reset_parameters"),
    ],
)
def test_sanity_refuses_what_it_cannot_randomise(network, count, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.sanity(network, torch.zeros(count, 3, 8, 8), edges)


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


# --- CLEAR's Table 1


@pytest.mark.parametrize(
    ("threshold", "strong"),
    [
        (0.5, [[[1, 1, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 1]]]),
        (0, [[[1, 1, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 1]]]),
        (1, [[[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]]),
    ],
)
def test_strong_is_positive_and_at_least_the_share_of_each_images_maximum(threshold, strong):
    first = [[4.0, 2.0, 1.9], [0.0, -3.0, 1.0]]
    second = [[0.4, 0.2, 0.1], [-1.0, 0.0, 0.3]]
    found = faithfulness.strong_features(torch.tensor([first, second]), threshold)
    assert found.dtype == torch.bool and found.int().tolist() == strong
    assert not faithfulness.strong_features(torch.zeros(2, 3, 3), threshold).any()
    assert not faithfulness.strong_features(-torch.ones(1, 3, 3), threshold).any()


@pytest.mark.parametrize(
    ("value", "threshold", "message"),
    [
        (1.0, -0.1, "threshold is -0.1; give a share of the maximum"),
        (1.0, 1.1, "share of the maximum"),
        (1.0, math.nan, "share of the maximum"),
        (math.nan, 0.5, "the response holds NaN"),
        (math.inf, 0.0, "the response holds NaN or infinite"),
    ],
)
def test_strong_refuses_what_is_no_share_and_nan(value, threshold, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.strong_features(torch.full((1, 2, 2), value), threshold)


def test_the_random_control_has_each_images_area_and_is_spread_evenly():
    mask = torch.zeros(4000, 4, 5, dtype=torch.bool)
    mask[:, 0] = True
    mask[0], mask[1] = False, True
    drawn = faithfulness.as_many_at_random(mask, torch.Generator().manual_seed(1))
    assert drawn.shape == mask.shape and drawn.dtype == torch.bool
    assert torch.equal(drawn.sum((1, 2)), mask.sum((1, 2)))
    assert (drawn.float().mean(0) - 0.25).abs().max() < 0.03
    again = faithfulness.as_many_at_random(mask, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


class LeftOrRight(nn.Module):
    """Answers 0 where the left column's ink prevails, 1 where the right one's does; ties are 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.dropout = nn.Dropout(1)

    def forward(self, images):
        score = self.dropout(images)[:, 0] @ self.weight
        return torch.stack([score.sum(1), -score.sum(1)], 1)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize(
    ("baseline", "accuracies"),
    [
        # only: (3, 0) -> 0 right; (1, 0) -> 0 wrong; (0, 2) -> 1 right; (5, 0) -> 0 right
        # without: (0, 1) -> 1 wrong; (0, 2) -> 1 right; (1, 0) -> 0 wrong; (0, 0) -> 0 right, a tie
        (0.0, (0.75, 0.5)),
        # only: (3, 4) wrong; (1, 4) right; (4, 2) wrong; (5, 4) right
        # without: (4, 1) right; (4, 2) wrong; (1, 4) right; (4, 0) right
        (4.0, (0.5, 0.75)),
    ],
)
def test_table_1_on_a_network_that_is_followed_by_hand(baseline, accuracies, batch_size):
    images = torch.tensor([[[3.0, 1.0]], [[1.0, 2.0]], [[1.0, 2.0]], [[5.0, 0.0]]])[:, None]
    labels = torch.tensor([0, 1, 1, 0])
    mask = torch.tensor([[[1, 0]], [[1, 0]], [[0, 1]], [[1, 0]]]).bool()
    network = LeftOrRight()
    arguments = network, images, labels
    found = faithfulness.accuracy_with_and_without(*arguments, mask, baseline, batch_size)
    assert found == accuracies
    assert network.training
    with pytest.raises(ValueError, match=r"mask \(4, 2, 1\)"):
        faithfulness.accuracy_with_and_without(*arguments, mask.transpose(1, 2), baseline)
    with pytest.raises(ValueError, match=r"classes \[2.*out of range; the network has 2"):
        faithfulness.accuracy_with_and_without(network, images, labels + 1, mask, baseline)
