"""The objectives against their papers written out term by term; the cuts against every other choice of cuts."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional

from lib.learning import losses as objectives

LABELS = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])


def scores(rows=8, classes=5, seed=0):
    return (
        torch.randn(
            rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        * 2
    )


def mean(losses, terms):
    return (losses.sum() / terms.sum()).item()


def conditional_loss(f, labels):
    """CORN, Eq. 5, term by term. f[i][j] = P(y > j | y >= j) for example i; S_j are the examples with y >= j."""
    summed, count = 0.0, 0
    for j in range(len(f[0])):
        subset = [i for i, y in enumerate(labels) if y >= j]
        count += len(subset)
        summed += sum(np.log(f[i][j]) if labels[i] > j else np.log(1 - f[i][j]) for i in subset)
    return -summed / count


def test_cross_entropy_is_minus_the_log_of_the_true_grades_share():
    S = scores()
    shares = np.exp(S.numpy()) / np.exp(S.numpy()).sum(1, keepdims=True)
    expected = [-np.log(row[y]) for row, y in zip(shares, LABELS, strict=True)]
    losses, terms = objectives.cross_entropy(S, LABELS)
    np.testing.assert_allclose(losses, expected)
    assert (terms == 1).all()


def test_label_smoothing_is_cross_entropy_against_nine_tenths_and_a_tenth_spread_over_all():
    S, target = scores(), np.full((8, 5), 0.1 / 5)
    target[range(8), LABELS] += 0.9
    losses, terms = objectives.label_smoothing(S, LABELS)
    np.testing.assert_allclose(losses, -(target * S.log_softmax(1).numpy()).sum(1))
    assert (terms == 1).all()


def test_expected_grade_adds_the_squared_error_of_the_expectation():
    S = torch.tensor([[0.0, 0.0, np.log(2.0)]])  # shares 1/4, 1/4, 1/2: the expected grade is 1.25
    losses, terms = objectives.expected_grade(S, torch.tensor([0]))
    assert losses.item() == pytest.approx(np.log(4) + 1.25**2)
    assert terms.item() == 1
    far = torch.tensor(
        [[9.0, 0, 0, 0, 5.0], [9.0, 5.0, 0, 0, 0]]
    )  # answers 0; the next best is 4, or 1
    plain, ordered = (
        f(far, torch.tensor([0, 0]))[0]
        for f in (objectives.cross_entropy, objectives.expected_grade)
    )
    assert plain[0] == plain[1] and ordered[0] > ordered[1]


@pytest.mark.parametrize("labels", [LABELS, torch.zeros(8, dtype=torch.int64), torch.full((8,), 4)])
def test_corn_is_the_papers_loss_with_the_scores_differences_as_log_odds(labels):
    S = scores()
    f = 1 / (1 + np.exp(-(S[:, 1:] - S[:, :-1]).numpy()))
    assert mean(*objectives.corn(S, labels)) == pytest.approx(conditional_loss(f, labels.tolist()))


def test_corn_gives_the_value_that_its_authors_print_for_their_example():
    # coral_pytorch.losses.corn_loss, the docstring's example: tensor(0.7127)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        images = torch.rand(8, 99)
        logits = torch.nn.Linear(99, 4)(images)
    S = functional.pad(logits.cumsum(1), (1, 0))
    assert mean(*objectives.corn(S, LABELS)) == pytest.approx(0.7127, abs=5e-5)


def test_corn_with_the_log_odds_of_a_softmax_would_be_cross_entropy_up_to_a_factor_of_the_batch():
    S = scores()
    tails = S.softmax(1).flip(1).cumsum(1).flip(1).numpy()  # P(y >= k)
    f = tails[:, 1:] / tails[:, :-1]
    factor = len(LABELS) / sum(min(y + 1, 4) for y in LABELS.tolist())
    assert conditional_loss(f, LABELS.tolist()) == pytest.approx(
        factor * functional.cross_entropy(S, LABELS).item()
    )


@pytest.mark.parametrize("name", objectives.LOSSES)
def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_split(name):
    loss, S = objectives.LOSSES[name], scores()
    pieces = [loss(S[part], LABELS[part]) for part in (slice(0, 3), slice(3, 4), slice(4, 8))]
    losses, terms = (torch.cat(values) for values in zip(*pieces, strict=True))
    assert mean(losses, terms) == pytest.approx(mean(*loss(S, LABELS)))


@pytest.mark.parametrize("name", objectives.LOSSES)
def test_what_is_added_to_all_scores_changes_neither_loss_nor_answer(name):
    S = scores()
    torch.testing.assert_close(
        objectives.LOSSES[name](S + 3, LABELS), objectives.LOSSES[name](S, LABELS)
    )
    assert torch.equal(objectives.answers(S + 3, name), objectives.answers(S, name))


@pytest.mark.parametrize("name", objectives.LOSSES)
def test_minimised_on_a_line_it_answers_every_grade_where_it_lies(name):
    x = torch.linspace(0, 5, 200)[:-1]
    labels, head = x.long(), torch.nn.Linear(2, 5)
    for p in head.parameters():
        torch.nn.init.zeros_(p)
    inputs, optimiser = (
        torch.stack([x - 2.5, (x - 2.5) ** 2 / 2.5], 1),
        torch.optim.Adam(head.parameters(), 0.2),
    )
    for _ in range(300):
        losses, terms = objectives.LOSSES[name](head(inputs), labels)
        optimiser.zero_grad()
        (losses.sum() / terms.sum()).backward()
        optimiser.step()
    answered = objectives.answers(head(inputs), name)
    assert (answered == labels).float().mean() > 0.9
    assert (answered.diff() >= 0).all()


def test_corns_probabilities_follow_the_chain_rule_and_its_answer_the_half():
    S = scores(rows=50)
    p, answered = objectives.probabilities(S, "corn"), objectives.answers(S, "corn")
    for row, found, answer in zip(S.tolist(), p.tolist(), answered.tolist(), strict=True):
        above, expected = 1.0, []
        counted = 0
        for k in range(4):
            higher = above / (1 + np.exp(row[k] - row[k + 1]))
            expected.append(above - higher)
            counted += higher > 0.5
            above = higher
        np.testing.assert_allclose(found, [*expected, above], atol=1e-12)
        assert answer == counted


def test_other_losses_mean_the_softmax():
    S = scores()
    for name in ("cross-entropy", "label-smoothing", "expected-grade"):
        torch.testing.assert_close(objectives.probabilities(S, name), S.softmax(1))
    assert torch.equal(objectives.answers(S), S.argmax(1))


def test_an_expected_grade_is_rounded_or_cut():
    p = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.1, 0.7], [0, 0, 1.0]]).log()
    np.testing.assert_allclose(objectives.expectation(p.exp()), [0, 0.5, 1.5, 2])
    assert objectives.answers(p, "expected-grade").tolist() == [0, 1, 2, 2]
    assert objectives.answers(p, "expected-grade", [0.6, 1.6]).tolist() == [0, 0, 1, 2]
    assert objectives.answers(p, "cross-entropy", [0.0, 3.0]).tolist() == [1, 1, 1, 1]


def test_kappa_is_one_for_the_truth_zero_for_a_constant_and_minus_one_for_the_reverse():
    y = torch.tensor([0, 0, 4, 4])
    assert objectives.kappa(y, y) == 1
    assert objectives.kappa(torch.full((4,), 2), y) == 0
    assert objectives.kappa(4 - y, y) == -1
    assert objectives.kappa(torch.ones(3), torch.ones(3)) == 0


@pytest.mark.parametrize("seed", range(12))
def test_no_other_cuts_give_a_higher_kappa(seed):
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(3, 14)), int(rng.integers(2, 5))
    y = np.append(rng.integers(classes, size=n), [0, classes - 1])
    expected = np.clip(y * rng.uniform(0.2, 1) + rng.normal(0, 1, n + 2), 0, classes - 1).round(
        seed % 2
    )  # with ties
    places = [-1, *np.unique(expected) + 1e-9]

    def kappa(cuts):
        answered = (expected[:, None] >= np.array(cuts)).sum(1)
        with np.errstate(invalid="ignore"):
            return cohen_kappa_score(y, answered, labels=range(classes), weights="quadratic")

    best = max(kappa(cuts) for cuts in combinations_with_replacement(places, classes - 1))
    found = objectives.thresholds(expected, y, classes)
    assert sorted(found) == found and len(found) == classes - 1
    assert kappa(found) == pytest.approx(best, abs=1e-9)


def test_cuts_of_thousands_of_photographs_beat_rounding_and_do_not_depend_on_their_order():
    rng = np.random.default_rng(0)
    y = rng.choice(5, 4000, p=[0.74, 0.07, 0.15, 0.02, 0.02])
    expected = np.clip(0.5 * y + rng.normal(0.3, 0.4, 4000), 0, 4)
    cuts, mixed = objectives.thresholds(expected, y), rng.permutation(4000)
    assert objectives.thresholds(expected[mixed], y[mixed]) == cuts
    rounded, cut = expected.round(), np.searchsorted(cuts, expected, side="right")
    assert cohen_kappa_score(y, cut, weights="quadratic") > 0.03 + cohen_kappa_score(
        y, rounded, weights="quadratic"
    )


@pytest.mark.parametrize(
    ("expected", "grades", "message"),
    [
        ([1.0, 2.0], [1], r"\(2,\) must be finite and as many as the grades \(1,\)"),
        ([1.0, np.nan], [1, 2], "finite"),
        ([1.0, 2.0], [3, 3], r"all 2 grades are \[3\.\]"),
    ],
)
def test_cuts_of_nothing_are_refused(expected, grades, message):
    with pytest.raises(ValueError, match=message):
        objectives.thresholds(expected, grades)
