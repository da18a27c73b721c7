"""The losses against their papers written out term by term, and the rules by which they answer."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lib.learning import losses

LABELS = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])


def scores(rows=8, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2


def mean(each, terms):
    return (each.sum() / terms.sum()).item()


def answers(S, loss):
    return losses.answered_grades(losses.probabilities(S, loss), loss)


def conditional_loss(f, labels):
    """CORN, Eq. 5, term by term: f[i][j] = P(y > j | y >= j) of example i; task j has y >= j."""
    summed, count = 0.0, 0
    for j in range(len(f[0])):
        for i, y in enumerate(labels):
            if y >= j:
                summed += np.log(f[i][j]) if y > j else np.log(1 - f[i][j])
                count += 1
    return -summed / count


def test_cross_entropy_is_minus_the_log_of_the_true_grades_share():
    S = scores()
    shares = np.exp(S.numpy()) / np.exp(S.numpy()).sum(1, keepdims=True)
    expected = [-np.log(row[y]) for row, y in zip(shares, LABELS, strict=True)]
    each, terms = losses.cross_entropy(S, LABELS)
    np.testing.assert_allclose(each, expected)
    assert (terms == 1).all()


def test_label_smoothing_is_cross_entropy_against_nine_tenths_and_a_tenth_spread_over_all():
    S, target = scores(), np.full((8, 5), 0.1 / 5)
    target[range(8), LABELS] += 0.9
    each, terms = losses.label_smoothing(S, LABELS)
    np.testing.assert_allclose(each, -(target * S.log_softmax(1).numpy()).sum(1))
    assert (terms == 1).all()


def test_expected_grade_adds_the_squared_error_of_the_expectation():
    S = torch.tensor([[0.0, 0.0, np.log(2.0)]])  # shares 1/4, 1/4, 1/2: the expected grade is 1.25
    each, terms = losses.expected_grade(S, torch.tensor([0]))
    assert each.item() == pytest.approx(np.log(4) + 1.25**2)
    assert terms.item() == 1
    far = torch.tensor([[9.0, 0, 0, 0, 5.0], [9.0, 5.0, 0, 0, 0]])  # next to 0 comes 4, or 1
    plain, _ = losses.cross_entropy(far, torch.tensor([0, 0]))
    ordered, _ = losses.expected_grade(far, torch.tensor([0, 0]))
    assert plain[0] == plain[1] and ordered[0] > ordered[1]


@pytest.mark.parametrize("labels", [LABELS, torch.zeros(8, dtype=torch.int64), torch.full((8,), 4)])
def test_corn_is_the_papers_loss_with_the_scores_differences_as_log_odds(labels):
    S = scores()
    f = 1 / (1 + np.exp(-(S[:, 1:] - S[:, :-1]).numpy()))
    assert mean(*losses.corn(S, labels)) == pytest.approx(conditional_loss(f, labels.tolist()))


def test_corn_gives_the_value_that_its_authors_print_for_their_example():
    # coral_pytorch.losses.corn_loss, the docstring's example: tensor(0.7127)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        images = torch.rand(8, 99)
        logits = torch.nn.Linear(99, 4)(images)
    S = functional.pad(logits.cumsum(1), (1, 0))
    assert mean(*losses.corn(S, LABELS)) == pytest.approx(0.7127, abs=5e-5)


def test_corn_with_the_log_odds_of_a_softmax_would_be_cross_entropy_up_to_a_factor_of_the_batch():
    S = scores()
    tails = S.softmax(1).flip(1).cumsum(1).flip(1).numpy()  # P(y >= k)
    f = tails[:, 1:] / tails[:, :-1]
    factor = len(LABELS) / sum(min(y + 1, 4) for y in LABELS.tolist())
    expected = factor * functional.cross_entropy(S, LABELS).item()
    assert conditional_loss(f, LABELS.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_split(name):
    loss, S = losses.LOSSES[name], scores()
    pieces = [loss(S[rows], LABELS[rows]) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    each, terms = (torch.cat(values) for values in zip(*pieces, strict=True))
    assert mean(each, terms) == pytest.approx(mean(*loss(S, LABELS)))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_what_is_added_to_all_scores_changes_neither_loss_nor_answer(name):
    S, loss = scores(), losses.LOSSES[name]
    torch.testing.assert_close(loss(S + 3, LABELS), loss(S, LABELS))
    assert torch.equal(answers(S + 3, name), answers(S, name))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_minimised_on_a_line_it_answers_every_grade_where_it_lies(name):
    x = torch.linspace(0, 5, 200)[:-1]
    labels, head = x.long(), torch.nn.Linear(2, 5)
    for p in head.parameters():
        torch.nn.init.zeros_(p)
    inputs = torch.stack([x - 2.5, (x - 2.5) ** 2 / 2.5], 1)
    optimiser = torch.optim.Adam(head.parameters(), 0.2)
    for _ in range(300):
        each, terms = losses.LOSSES[name](head(inputs), labels)
        optimiser.zero_grad()
        (each.sum() / terms.sum()).backward()
        optimiser.step()
    answered = answers(head(inputs), name)
    assert (answered == labels).float().mean() > 0.9
    assert (answered.diff() >= 0).all()


def test_corns_probabilities_follow_the_chain_rule_and_its_answer_the_half():
    S = scores(rows=50)
    found, answered = losses.probabilities(S, "corn").tolist(), answers(S, "corn").tolist()
    for row, p, answer in zip(S.tolist(), found, answered, strict=True):
        above, expected, counted = 1.0, [], 0
        for k in range(4):
            higher = above / (1 + np.exp(row[k] - row[k + 1]))
            expected.append(above - higher)
            counted += higher > 0.5
            above = higher
        np.testing.assert_allclose(p, [*expected, above], atol=1e-12)
        assert answer == counted


def test_other_losses_mean_the_softmax_and_answer_the_likeliest_grade():
    S = scores()
    for name in ("cross-entropy", "label-smoothing", "expected-grade"):
        torch.testing.assert_close(losses.probabilities(S, name), S.softmax(1))
    for name in ("cross-entropy", "label-smoothing"):
        assert torch.equal(answers(S, name), S.argmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "p", "answer"),
    [
        ("cross-entropy", [0.2, 0.5, 0.3], 1),
        ("cross-entropy", [0.4, 0.2, 0.4], 0),  # of two that are equally likely, the lower grade
        ("label-smoothing", [0.1, 0.3, 0.6], 2),
        ("corn", [0.5, 0.25, 0.25], 0),  # P(y > 0) is a half, so not above
        ("corn", [0.25, 0.25, 0.5], 1),  # P(y > 1) is
        ("corn", [0.4, 0.2, 0.4], 1),  # its median; likelier are 0 and 2
        ("corn", [0.0, 0.0, 1.0], 2),
        ("expected-grade", [1.0, 0.0, 0.0], 0),
        ("expected-grade", [0.5, 0.5, 0.0], 1),  # 0.5: a half goes up
        ("expected-grade", [0.25, 0.0, 0.75], 2),  # 1.5
        ("expected-grade", [0.375, 0.0, 0.625], 1),  # 1.25
        ("expected-grade", [0.0, 0.0, 1.0], 2),
    ],
)
def test_how_probabilities_become_a_grade(loss, p, answer, dtype):
    answered = losses.answered_grades(torch.tensor([p], dtype=dtype), loss)
    assert answered.dtype == torch.int64 and answered.tolist() == [answer]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_corns_scores_for_an_even_chance_are_not_above(dtype):
    assert answers(torch.zeros(1, 5, dtype=dtype), "corn").tolist() == [0]
    sure = torch.tensor([[0, 90, 180, 180, 7]], dtype=dtype)  # P(y > 2) is a half
    assert answers(sure, "corn").tolist() == [2]


def test_the_expected_grade_weighs_the_grades_with_their_probabilities():
    p = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.1, 0.7]])
    np.testing.assert_allclose(losses.expected(p), [0, 0.5, 1.5], rtol=1e-6)


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("label", [-100, -1, 5, 255])
def test_a_label_that_is_no_grade_is_refused_by_every_loss(loss, label):
    labels = LABELS.clone()
    labels[[0, 3]] = label
    with pytest.raises(ValueError, match=rf"are to be 0 to 4.* 2 of 8 are not: {label} \(2\)"):
        losses.LOSSES[loss](scores(), labels)


@pytest.mark.parametrize("labels", [LABELS.float(), LABELS.int(), LABELS[:, None], LABELS == 1])
def test_labels_that_are_not_a_row_of_whole_numbers_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels of train are torch\.\w+ \(.*: one whole number"):
        losses.require_labels(labels, 5, "train")


def test_no_more_than_five_values_are_listed():
    with pytest.raises(ValueError, match=r"7 of 9 are not: 2 \(1\), 3.*, 6 \(1\)\. Leave"):
        losses.require_labels(torch.arange(9), 2)
