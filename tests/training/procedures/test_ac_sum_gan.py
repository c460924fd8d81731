from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.procedures import ac_sum_gan
from vsum_runtime.training.procedures.ac_sum_gan import ActorCriticGAN, best_epoch, best_run

NAMES = {  # ours -> the authors'
    "reconstruction": "recon_loss_epoch",
    "step_distance": "recon_loss_init_epoch",
    "prior": "prior_loss_epoch",
    "generator": "g_loss_epoch",
    "encoder": "e_loss_epoch",
    "decoder": "d_loss_epoch",
    "original": "c_original_loss_epoch",
    "summary": "c_summary_loss_epoch",
    "sparsity": "sparsity_loss_epoch",
    "actor": "actor_loss_epoch",
    "critic": "critic_loss_epoch",
    "reward": "reward_epoch",
}


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("ac_sum_gan")


@pytest.fixture
def _drawn_as_the_authors_were(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = cycle(reference.file["forced_actions"])
    noise = np.float32(np.sqrt(512)) * reference.fill.tensor("epsilon", (2, 512), reference.file["salt"])
    monkeypatch.setattr(ac_sum_gan, "draw_actions", lambda logits: torch.tensor([next(actions)] * len(logits)))
    monkeypatch.setattr(
        ac_sum_gan, "draw_noise", lambda steps: torch.from_numpy(noise)[:, None].expand(2, len(steps), -1)
    )


def made(reference: Any, **config: float) -> ActorCriticGAN:
    procedure = ActorCriticGAN(build("ac_sum_gan"), replace(ActorCriticGAN.defaults, **config), n_epochs=3)
    weights = reference.weights(reference.file["state_dict"], reference.file["overrides"])
    load_reference_state_dict(procedure.networks, weights)
    return procedure


def video(reference: Any, n_steps: int) -> Video:
    features = reference.features(n_steps).numpy()
    return Video(key="video_1", n_frames=n_steps * 15, picks=np.arange(n_steps) * 15, features=features)


def losses(reference: Any, mode: str) -> Iterator[Any]:
    return (loss for loss in reference.file["losses"] if loss["mode"] == mode)


@pytest.mark.usefixtures("_drawn_as_the_authors_were")
@pytest.mark.parametrize("case", [0, *(pytest.param(case, marks=pytest.mark.slow) for case in (1, 2, 3))])
def test_losses_and_gradients_match_the_authors_code(reference: Any, case: int) -> None:
    loss = list(losses(reference, "frozen"))[case]
    procedure = made(
        reference, sparsity=loss["regularization_factor"], learning_rate=0.0, discriminator_learning_rate=0.0
    )
    log = procedure.run_epoch([video(reference, loss["n_steps"])], 1)
    values = loss["values"]
    expected = {ours: values[theirs] for ours, theirs in NAMES.items()}
    assert {name: log[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert log["summary_probability"] == pytest.approx(values["sum_prob"], rel=1e-4)
    assert 1 - log["original"] ** 0.5 == pytest.approx(values["original_prob"], rel=1e-4)

    norms = [log[f"{name}_grad_norm"] for name in ("encoder", "decoder", "discriminator", "actor")]
    assert norms == pytest.approx(list(loss["grad_norm_before_clip"].values()), rel=1e-3)
    model, critic = procedure.networks["model"], procedure.networks["critic"]
    parts = {
        "actor": [model.actor],
        "s_lstm": [model.lstm, model.regress],
        "linear_compress": [model.compress],
        "critic": [critic],
    }
    clipped = {
        name: torch.cat([p.grad.flatten().double() for part in modules for p in part.parameters()]).norm().item()
        for name, modules in parts.items()
    }
    assert clipped == pytest.approx(loss["phase4_grad_norms_after_clip"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("_drawn_as_the_authors_were")
def test_three_epochs_end_where_the_authors_code_does(reference: Any) -> None:
    for loss in losses(reference, "live"):
        procedure = made(reference, sparsity=loss["regularization_factor"])
        one = video(reference, loss["n_steps"])
        log = [procedure.run_epoch([one], epoch) for epoch in range(1, loss["epochs"] + 1)]
        for ours, theirs in NAMES.items():
            assert [line[ours] for line in log] == pytest.approx(loss["values_per_epoch"][theirs], rel=1e-3), ours
        with torch.no_grad():
            model = procedure.networks["model"].eval()
            scores = model(torch.from_numpy(one.features)[None], torch.tensor([loss["n_steps"]]))[0]
        assert scores[:8].tolist() == pytest.approx(loss["scores_after_first8"], abs=1e-4)
        assert scores.mean().item() == pytest.approx(loss["scores_after_mean"], abs=1e-4)


def test_padded_batches_give_the_mean_of_their_videos(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ac_sum_gan, "_TOGETHER", 3)
    monkeypatch.setattr(ac_sum_gan, "draw_actions", lambda logits: logits.argmax(dim=1))
    monkeypatch.setattr(ac_sum_gan, "draw_noise", lambda steps: steps.new_ones(2, len(steps), steps.shape[2]))

    def gradients(batch: list[Video]) -> tuple[dict[str, float], list[torch.Tensor]]:
        torch.manual_seed(0)
        model = build("ac_sum_gan", feature_dim=8, hidden_size=6, action_state_size=30)
        config = replace(ActorCriticGAN.defaults, learning_rate=0.0, discriminator_learning_rate=0.0, max_grad_norm=1e9)
        procedure = ActorCriticGAN(model.double(), config, n_epochs=1)
        procedure.networks.double()
        batch = [replace(one, features=one.features.astype(np.float64)) for one in batch]
        return procedure.run_epoch(batch, 1), [parameter.grad for parameter in procedure.networks.parameters()]

    together, grads_together = gradients(videos)  # one of them has fewer steps than fragments
    alone, grads_alone = zip(*(gradients([one]) for one in videos), strict=True)
    for name in NAMES:
        assert together[name] == pytest.approx(np.mean([log[name] for log in alone])), name
    for whole, *parts in zip(grads_together, *grads_alone, strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0))


def test_only_sparsity_reaches_the_importance_unless_asked_for(videos: list[Video]) -> None:
    for state_gradient in (False, True):
        torch.manual_seed(0)
        model = build("ac_sum_gan", feature_dim=8, hidden_size=6, action_state_size=20)
        config = replace(ActorCriticGAN.defaults, state_gradient=state_gradient)
        procedure = ActorCriticGAN(model, config, n_epochs=1)
        features = torch.rand(1, 40, 8)
        lengths = torch.tensor([40])
        steps = model.compressed(features, lengths)
        importance = model.importance(steps, lengths)
        actor, _, _ = procedure._play(steps, importance, lengths)
        (gradient,) = torch.autograd.grad(actor.sum(), importance, allow_unused=True)
        assert (gradient is not None) is state_gradient


def test_the_epoch_is_chosen_by_great_reward_and_small_actor_loss() -> None:
    log = [
        {"actor": -4.0, "reward": 0.8},  # (1 - 1) * 1
        {"actor": 1.0, "reward": 0.4},  # 0.75 * 0.5
        {"actor": 2.0, "reward": 0.6},  # 0.5 * 0.75
        {"actor": -1.0, "reward": 0.5},  # 0.75 * 0.625
    ]
    assert best_epoch(log) == 4
    assert best_run({0.1: log, 0.5: [{"actor": 0.0, "reward": 0.5}], 0.9: log}) == (0.5, 1)


def test_the_epoch_of_greatest_reward_wins_where_no_reward_is_positive() -> None:
    assert best_epoch([{"actor": 1.0, "reward": r} for r in (-3.0, -1.0, -2.0)] + [{"actor": 2.0, "reward": -3.0}]) == 2
    assert best_epoch([{"actor": 0.0, "reward": 0.0}]) == 1
