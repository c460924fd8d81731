"""The rules that choose an epoch from the log of a run. The log holds nothing of the test videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vsum_runtime.training.procedures import ac_sum_gan, ca_sum, sspvs_pretrain


@dataclass(frozen=True)
class Epoch:
    """One line of a run's log."""

    epoch: int
    """Epochs done, from 1."""
    objectives: dict[str, float]
    """Means over the videos or updates of the epoch, as the procedure names them, the headline first."""
    validation_tau: float | None
    """Mean Kendall tau of the held-out videos. None: nothing held out, or constant scores."""
    seconds: float
    """Training and validation, without writing."""

    @property
    def headline(self) -> tuple[str, float]:
        return next(iter(self.objectives.items()))


Log = Sequence[Epoch]


@dataclass(frozen=True)
class Rule:
    """How the epoch is chosen."""

    choose: Callable[[Log], int]
    """The log so far -> the chosen epoch, from 1."""
    value: Callable[[Epoch], float | None]
    """The number by which the epoch was chosen; a checkpoint records it."""
    holds_out: bool = False
    """Whether the rule needs a part of the training videos to be held out."""
    eligible: Callable[[Log], set[int]] | None = None
    """The log so far -> epochs that may yet be chosen. None: the chosen one, and whatever comes."""


def validation_choice(log: Log) -> int:
    """The first epoch of greatest validation tau."""
    return 1 + int(np.argmax([-np.inf if line.validation_tau is None else line.validation_tau for line in log]))


def last_choice(log: Log) -> int:
    """The last epoch."""
    return len(log)


def training_loss_choice(log: Log) -> int:
    """The rule of PGL-SUM's authors, which looks at the training loss only.

    The candidate is the first epoch from the 17th on whose loss fell by at least 1 %, or the epoch before the first
    rise by as much, or else the first epoch. The epoch of least loss is taken instead if the loss moved less before it.
    """
    losses = _losses(log)
    candidate, change = _candidate(losses)
    least = int(np.argmin(losses))
    change_before_least = 100 * (losses[least] - losses[least - 1]) / losses[least]
    return 1 + (least if abs(change_before_least) < abs(change) else candidate)


def _training_loss_eligible(log: Log) -> set[int]:
    losses = _losses(log)
    candidate, change = _candidate(losses)
    eligible = {training_loss_choice(log), 1 + candidate, 1 + int(np.argmin(losses))}
    return eligible | {len(log)} if change == 0.0 else eligible  # a rise in the next epoch makes this one the candidate


def _candidate(losses: Sequence[float]) -> tuple[int, float]:
    """Index of the candidate, and the change in percent that made it one (0.0: none did yet)."""
    for i in range(15, len(losses) - 1):
        change = 100 * (losses[i + 1] - losses[i]) / losses[i + 1]
        if abs(change) >= 1:
            return (i + 1 if change < 0 else i), change
    return 0, 0.0


def _losses(log: Log) -> list[float]:
    return [line.headline[1] for line in log]


def reward_choice(log: Log) -> int:
    """The rule of AC-SUM-GAN's authors; see ``training.procedures.ac_sum_gan.best_epoch``."""
    return ac_sum_gan.best_epoch([line.objectives for line in log])


def _reward_eligible(log: Log) -> set[int]:
    """Once there is an epoch of greater reward and smaller actor's loss, another cannot be chosen: both are wanted."""
    points = [(line.objectives["reward"], -abs(line.objectives["actor"])) for line in log]
    front = {
        line.epoch
        for line, (reward, actor) in zip(log, points, strict=True)
        if not any(other > reward and another > actor for other, another in points)
    }
    return front | {reward_choice(log)}


RULES: dict[str, Rule] = {
    "validation": Rule(validation_choice, lambda line: line.validation_tau, holds_out=True),
    "training-loss": Rule(training_loss_choice, lambda line: line.headline[1], eligible=_training_loss_eligible),
    "least-loss": Rule(
        lambda log: ca_sum.published_choice([line.objectives for line in log]), lambda line: line.headline[1]
    ),
    "reward": Rule(reward_choice, lambda line: line.objectives["reward"], eligible=_reward_eligible),
    "match-accuracy": Rule(
        lambda log: sspvs_pretrain.published_choice([line.objectives for line in log]),
        lambda line: line.objectives.get("validation_match_accuracy"),
        holds_out=True,
    ),
    "cross-validation": Rule(last_choice, lambda line: line.objectives["cross_validation_tau"]),
    "last": Rule(last_choice, lambda line: None),
}
"""Name -> rule. ``least-loss`` is that of CA-SUM's authors, ``match-accuracy`` that of SSPVS's for pretraining;
``cross-validation`` is for weights that are solved for in one epoch, whose settings were chosen so."""


def eligible(rule: Rule, log: Log) -> set[int]:
    """Epochs so far whose weights must be kept, because the rule chooses them now or may do so later."""
    return {rule.choose(log)} if rule.eligible is None else rule.eligible(log)
