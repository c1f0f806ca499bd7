"""The losses on pairs and on rankings, against each other and by hand."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_helpers import reward_model
from rlhf_helpers.reward_model.losses import kwise_loss, pairwise_loss, ranked_pairs


def draw(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    """Scores in float64 that keep gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(k, generator=generator, dtype=torch.float64).mul(2).requires_grad_()
        for k in sizes
    ]


def by_hand(scores, rankings) -> torch.Tensor:
    """Eq. 1 with plain loops: pairs of a prompt are averaged, then the prompts."""
    means = []
    for s, ranking in zip(scores, rankings, strict=True):
        groups = [group if isinstance(group, list) else [group] for group in ranking]
        pairs = [
            pairwise_loss(s[i, None], s[j, None])
            for above, below in combinations(groups, 2)
            for i in above
            for j in below
        ]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    return sum(means) / len(means)


def same_with_gradients(first, second, scores, atol=1e-12) -> None:
    torch.testing.assert_close(first, second, atol=atol, rtol=0)
    gradients = [torch.autograd.grad(loss, scores) for loss in (first, second)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_the_losses_are_also_found_in_the_reward_model():
    assert reward_model.pairwise_loss is pairwise_loss
    assert reward_model.kwise_loss is kwise_loss


# K-wise


def test_of_two_answers_the_k_wise_loss_is_the_pairwise_loss():
    scores = draw(2, 2, 2)
    rankings = [[0, 1], [1, 0], [1, 0]]
    chosen = torch.stack([s[r[0]] for s, r in zip(scores, rankings, strict=True)])
    rejected = torch.stack([s[r[1]] for s, r in zip(scores, rankings, strict=True)])
    same_with_gradients(kwise_loss(scores, rankings), pairwise_loss(chosen, rejected), scores)


@pytest.mark.parametrize("k", [2, 3, 4, 7, 9])
def test_the_k_wise_loss_is_the_mean_of_the_pairwise_losses(k):
    (s,) = scores = draw(k)
    ranking = torch.randperm(k, generator=torch.Generator().manual_seed(k)).tolist()
    pairs = list(combinations(ranking, 2))
    assert len(pairs) == math.comb(k, 2)
    better, worse = torch.tensor(pairs).T
    same_with_gradients(kwise_loss(scores, [ranking]), pairwise_loss(s[better], s[worse]), scores)


@given(st.data())
def test_any_k_mixed_in_a_batch_with_ties_is_eq_1_done_by_hand(data):
    rankings = []
    for _ in range(data.draw(st.integers(1, 5))):
        k = data.draw(st.integers(2, 6))
        order = data.draw(st.permutations(range(k)))
        cuts = sorted(data.draw(st.sets(st.integers(1, k - 1), min_size=1)))
        groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, k], strict=True)]
        rankings.append([g if len(g) > 1 else g[0] for g in groups])
    scores = draw(*(sum(len(g) if isinstance(g, list) else 1 for g in r) for r in rankings))
    same_with_gradients(kwise_loss(scores, rankings), by_hand(scores, rankings), scores)


def test_each_prompt_weighs_the_same_however_many_answers_it_has():
    scores = draw(2, 6)
    rankings = [[0, 1], [5, 4, 3, 2, 1, 0]]
    alone = [kwise_loss([s], [r]) for s, r in zip(scores, rankings, strict=True)]
    torch.testing.assert_close(kwise_loss(scores, rankings), sum(alone) / 2)


def test_a_tied_pair_contributes_nothing():
    (s,) = scores = draw(3)
    expected = (pairwise_loss(s[None, 2], s[None, 0]) + pairwise_loss(s[None, 2], s[None, 1])) / 2
    same_with_gradients(kwise_loss(scores, [[2, [0, 1]]]), expected, scores)


def test_a_prompt_of_ties_alone_does_not_count_and_a_batch_of_them_costs_nothing():
    scores = draw(3, 2)
    tied, order = [[0, 1, 2]], [1, 0]
    same = kwise_loss(scores[1:], [order])
    torch.testing.assert_close(kwise_loss(scores, [tied, order]), same)
    nothing = kwise_loss(scores, [tied, [[0, 1]]])
    assert nothing.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(nothing, scores))


def test_the_gradient_of_the_k_wise_loss():
    scores = draw(3, 4)
    rankings = [[2, 0, 1], [[1, 3], 0, 2]]
    assert torch.autograd.gradcheck(lambda *s: kwise_loss(s, rankings), scores)
    for smoothing in (0.1, 0.5):
        assert torch.autograd.gradcheck(lambda *s: kwise_loss(s, rankings, smoothing), scores)  # noqa: B023


def test_the_weights_of_pairs_add_up_to_1():
    better, worse, weights = ranked_pairs([[1, 0], [[0, 2], 1], [[0, 1]]])
    assert better.tolist() == [1, 2, 4]
    assert worse.tolist() == [0, 3, 3]
    assert weights.tolist() == [0.5, 0.25, 0.25]


# Label smoothing and margins


def test_label_smoothing_is_the_expected_loss_over_flipped_labels():
    chosen, rejected = draw(5, 5)
    right, wrong = pairwise_loss(chosen, rejected), pairwise_loss(rejected, chosen)
    smooth = pairwise_loss(chosen, rejected, label_smoothing=0.2)
    same_with_gradients(smooth, 0.8 * right + 0.2 * wrong, [chosen, rejected])


def test_smoothing_is_the_same_for_pairs_and_rankings():
    scores = draw(4, 3)
    rankings, smoothing = [[3, 1, 0, 2], [0, [1, 2]]], 0.1
    turned = [list(reversed(ranking)) for ranking in rankings]
    expected = 0.9 * kwise_loss(scores, rankings) + 0.1 * kwise_loss(scores, turned)
    same_with_gradients(kwise_loss(scores, rankings, smoothing), expected, scores)


def test_smoothed_labels_ask_for_a_gap_of_the_log_odds_of_their_being_right():
    gap = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    pairwise_loss(gap, torch.zeros_like(gap), label_smoothing=0.1).backward()
    assert gap.grad.item() == pytest.approx(0, abs=1e-12)


def test_a_margin_is_taken_off_the_difference_pair_by_pair():
    chosen, rejected, margin = torch.tensor([2.0, 1.0]), torch.zeros(2), torch.tensor([2.0, 0.0])
    expected = (math.log(2) + math.log1p(math.exp(-1))) / 2
    assert pairwise_loss(chosen, rejected, margin).item() == pytest.approx(expected)
