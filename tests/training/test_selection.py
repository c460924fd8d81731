"""Which epoch a rule takes, and that its weights are still there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsum_runtime.training.selection import RULES, Epoch, eligible, training_loss_choice


def line(epoch: int, loss: float, tau: float | None = None, actor: float = 0.0) -> Epoch:
    objectives = {"loss": loss, "actor": actor, "reward": -loss, "validation_match_accuracy": -loss}
    return Epoch(epoch=epoch, objectives=objectives, validation_tau=tau, seconds=0.1)


def test_the_validation_rule_takes_the_first_best_epoch() -> None:
    log = [line(1, 1.0, None), line(2, 0.9, 0.1), line(3, 0.8, 0.3), line(4, 0.7, 0.3), line(5, 0.6, 0.2)]
    assert RULES["validation"].choose(log) == 3
    assert RULES["validation"].choose(log[:1]) == 1
    assert RULES["last"].choose(log) == 5


def published_rule_as_written(loss: list[float]) -> int:
    """PGL-SUM's rule in the words of its description; epochs from 0."""
    candidate, d = 0, 0.0
    for i in range(15, len(loss) - 1):
        change = 100 * (loss[i + 1] - loss[i]) / loss[i + 1]
        if change <= -1:
            candidate, d = i + 1, change
            break
        if change >= 1:
            candidate, d = i, change
            break
    a = loss.index(min(loss))
    da = 100 * (loss[a] - loss[a - 1]) / loss[a]
    return a if abs(da) < abs(d) else candidate


@given(st.lists(st.floats(0.5, 1.0), min_size=1, max_size=40))
@settings(deadline=None, max_examples=200)
def test_the_rule_of_pgl_sum(losses: list[float]) -> None:
    log = [line(epoch, loss) for epoch, loss in enumerate(losses, start=1)]
    assert training_loss_choice(log) == published_rule_as_written(losses) + 1


NUMBERS = st.sampled_from([-0.5, 0.5, 0.501, 0.502, 0.6])


@pytest.mark.parametrize("name", sorted(RULES))
@given(values=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40))
@settings(deadline=None, max_examples=150)
def test_the_weights_a_rule_chooses_were_kept_since_their_epoch(name: str, values: list[tuple[float, float]]) -> None:
    rule = RULES[name]
    # No two actors' losses are the same to the last bit: of equal greatest ones any epoch may be chosen.
    log = [line(epoch, loss, -loss, actor + 1e-6 * epoch) for epoch, (loss, actor) in enumerate(values, start=1)]
    kept: set[int] = set()
    for epoch in range(1, len(log) + 1):
        now = eligible(rule, log[:epoch])
        assert rule.choose(log[:epoch]) in now
        assert now <= kept | {epoch}
        kept = now
