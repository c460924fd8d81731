from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.training.resuming import assert_resumes
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.vslud import SummaryDiscriminator
from vsum_runtime.training.procedures.fcsn import balanced_cross_entropy
from vsum_runtime.training.procedures.vslud import Unpaired, select, summary_losses


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("vslud_sk")


@pytest.fixture(scope="module")
def networks(reference: Any, model_golden: Any) -> Any:
    discriminator = model_golden("vslud_sd")
    loaded = []
    for network, golden in ((build("vslud"), reference), (SummaryDiscriminator(1024), discriminator)):
        load_reference_state_dict(network, golden.weights(golden.file["state_dict"], golden.file["overrides"]))
        loaded.append(network.eval())
    return loaded


def losses(reference: Any, networks: Any, loss: Any, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, float]]:
    """Values and gradient norms, by the names of the golden file."""
    selector, discriminator = (network.to(dtype) for network in networks)
    for network in networks:
        network.train(loss["mode"] == "train_bn")
        for layer in network.modules():
            if "Dropout" in type(layer).__name__:
                layer.eval()
    n_steps, k = loss["n_steps"], loss["k_hard"]
    features, lengths = reference.features(n_steps)[None].to(dtype), torch.tensor([n_steps])
    human = reference.fill.features(loss["summary_steps"], 1024, reference.file["salt"] + "-summary")

    logits = selector.logits(features, lengths)
    mask = torch.sigmoid(logits[:, 1] - logits[:, 0])
    summary = selector.reconstruct(features, logits, mask, lengths)
    fake = discriminator.logit(summary, lengths)[0]
    real = discriminator.logit(torch.from_numpy(human)[None].to(dtype), torch.tensor([loss["summary_steps"]]))[0]
    reconstruction, diversity = summary_losses(summary[0], features[0], mask[0])
    chosen, _ = select(logits[0, 1] - logits[0, 0], k, 1.0)
    assert chosen[:8].tolist() == loss["hard_indices_first8"]
    reconstruction_hard, diversity_hard = summary_losses(summary[0, chosen], features[0, chosen], torch.ones(k))
    total = F.softplus(-fake) + reconstruction + diversity
    selector.zero_grad()
    total.backward(retain_graph=False)
    gradients = {name: parameter.grad for name, parameter in selector.named_parameters()}
    views = selector.reference_views(gradients)
    values = {
        "adv_generator": F.softplus(-fake),
        "reconstruction_soft": reconstruction,
        "diversity_soft": diversity,
        "total_coeff_1_1_1": total,
        "reconstruction_hard": reconstruction_hard,
        "diversity_hard": diversity_hard,
        "disc_real": F.softplus(-real),
        "disc_fake": F.softplus(fake),
        "disc_prob_real": torch.sigmoid(real),
        "disc_prob_fake": torch.sigmoid(fake),
        "supervised_ce": balanced_cross_entropy(logits[0], torch.arange(n_steps) % 7 == 0),
    }
    names = loss["grad_norm_total_wrt_S_K"]
    return {name: value.item() for name, value in values.items()}, {key: views[key].norm().item() for key in names}


@pytest.mark.parametrize("index", [0, 1])
def test_losses_and_gradients_match_the_authors_code(reference: Any, networks: Any, index: int) -> None:
    loss = reference.file["losses"][index]
    values, norms = losses(reference, networks, loss, torch.float32)
    assert values == pytest.approx({name: loss[name] for name in values}, rel=1e-3)
    tolerance = {"eval": 5e-3, "train_bn": 5e-2}[loss["mode"]]
    assert norms == pytest.approx(loss["grad_norm_total_wrt_S_K"], rel=tolerance)

    values, norms = losses(reference, networks, loss, torch.float64)
    assert {name: values[name] for name in loss["values_f64"]} == pytest.approx(loss["values_f64"], rel=1e-6)
    assert norms == pytest.approx(loss["grad_norm_total_wrt_S_K_f64"], rel=1e-5)


def test_the_best_steps_are_chosen_and_earlier_ones_on_ties() -> None:
    margin = torch.tensor([0.0, 2.0, 1.0, 1.0, -3.0, 1.0])
    chosen, mask = select(margin, 3, 0.5)
    assert chosen.tolist() == [1, 2, 3]
    assert mask.tolist() == [0, 1, 1, 1, 0, 0]


def test_the_mask_has_the_gradient_of_a_soft_choice_of_the_same_size() -> None:
    torch.manual_seed(0)
    margin, k, temperature = torch.randn(12, dtype=torch.float64), 4, 0.7

    def soft(margin: torch.Tensor) -> torch.Tensor:
        low, high = margin.min() - 50, margin.max() + 50
        for _ in range(200):
            middle = (low + high) / 2
            above = torch.sigmoid((margin - middle) / temperature).sum() > k
            low, high = (middle, high) if above else (low, middle)
        return torch.sigmoid((margin - low) / temperature)

    step = 1e-6
    expected = torch.stack(
        [(soft(margin + step * unit) - soft(margin - step * unit)) / (2 * step) for unit in torch.eye(12).double()], 1
    )
    jacobian = torch.autograd.functional.jacobian(lambda m: select(m, k, temperature)[1], margin)
    torch.testing.assert_close(jacobian, expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(jacobian.sum(dim=0), torch.zeros(12).double(), atol=1e-9, rtol=0)


def test_a_choice_that_is_beyond_doubt_has_no_gradient_and_no_nan() -> None:
    for margin, k in ((torch.tensor([500.0, -500.0, -501.0]), 1), (torch.zeros(3), 3), (torch.zeros(1), 1)):
        margin.requires_grad_()
        mask = select(margin, k, 0.1)[1]
        gradient = torch.autograd.grad(mask.sum() if k < len(margin) else mask.sum() + 0 * margin.sum(), margin)[0]
        assert (gradient == 0).all()


@pytest.mark.usefixtures("narrow_fcsn")
def test_the_adversarial_loss_reaches_steps_that_were_not_chosen(videos: list[Video]) -> None:
    torch.manual_seed(0)
    procedure = Unpaired(build("vslud", feature_dim=8), Unpaired.defaults, n_epochs=1)
    features = torch.from_numpy(videos[0].features)[None]
    logits = procedure._model.logits(features, torch.tensor([40])).detach().requires_grad_()
    chosen, weight, summary = procedure._rebuilt(features, logits, 1.0)
    assert summary.shape == (1, 6, 8)
    assert weight.tolist() == [1] * 6
    (gradient,) = torch.autograd.grad(F.softplus(-procedure._verdict(summary)), logits)
    others = torch.ones(40, dtype=torch.bool).index_fill(0, chosen, False)
    assert (gradient[0, :, others] != 0).any()


@pytest.mark.usefixtures("narrow_fcsn")
def test_no_video_lends_its_summary_and_is_summarised_too(videos: list[Video]) -> None:
    config = replace(Unpaired.defaults, paired_share=0.5)
    procedure = Unpaired(build("vslud", feature_dim=8), config, n_epochs=1)
    raw, paired, summaries = procedure._pool(9)
    assert sorted(raw + summaries) == list(range(9))
    assert (len(raw), len(summaries), len(paired)) == (4, 5, 2)
    assert paired <= set(raw)
    assert procedure._pool(9) == (raw, paired, summaries)
    with pytest.raises(InputError, match="expected a raw video and a summary of another, got 1 video"):
        procedure.run_epoch(videos[:1], 1)


@pytest.mark.usefixtures("narrow_fcsn")
def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(InputError, match="selection: expected one of ste_topk, gumbel_topk, soft, got 'best'"):
        Unpaired(build("vslud", feature_dim=8), replace(Unpaired.defaults, selection="best"), n_epochs=1)


@pytest.mark.usefixtures("narrow_fcsn")
@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("selection", ["ste_topk", "gumbel_topk", "soft"])
def test_training_improves_its_objective_and_keeps_telling_steps_apart(
    selection: str, variant: str, videos: list[Video]
) -> None:
    torch.manual_seed(0)
    config = replace(Unpaired.defaults, selection=selection, learning_rate=1e-3, paired_share=0.5)
    procedure = Unpaired(build("vslud", feature_dim=8, variant=variant), config, n_epochs=20)
    log = [procedure.run_epoch(videos, epoch) for epoch in range(1, 21)]
    if selection != "soft":  # whose objective has little to tell the selector: why the other two exist
        first, last = (sum(line["loss"] for line in part) for part in (log[:5], log[-5:]))
        assert last < 0.95 * first
    assert log[-1]["score_spread"] > 0.5 * log[0]["score_spread"]
    assert all(torch.isfinite(parameter).all() for parameter in procedure.networks.parameters())


@pytest.mark.usefixtures("narrow_fcsn")
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(videos: list[Video]) -> None:
    def make() -> Unpaired:
        torch.manual_seed(0)
        return Unpaired(build("vslud", feature_dim=8), replace(Unpaired.defaults, selection="gumbel_topk"), n_epochs=2)

    assert_resumes(make, videos)


@pytest.mark.usefixtures("narrow_fcsn")
def test_without_adversary_no_labels_are_read(videos: list[Video]) -> None:
    procedure = Unpaired(build("vslud", feature_dim=8), replace(Unpaired.defaults, adversarial_weight=0.0), n_epochs=1)
    log = procedure.run_epoch([replace(videos[0], gtscore=None, shots=None)], 1)
    assert log.keys() == {"loss", "reconstruction", "diversity", "score_spread"}
    assert list(procedure.networks) == ["model"]
