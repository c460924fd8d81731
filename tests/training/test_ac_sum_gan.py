from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.ac_sum_gan import Episode, Networks, fragments


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("ac_sum_gan")


@pytest.fixture(scope="module")
def weights(reference: Any) -> Any:
    return reference.weights(reference.file["state_dict"], reference.file["overrides"])


@pytest.fixture(scope="module")
def model(reference: Any, weights: Any) -> torch.nn.Module:
    model = build("ac_sum_gan", feature_dim=1024, **reference.file["config"]).eval()
    load_reference_state_dict(model, weights)
    return model


def played(model: Any, importance: Tensor, actions: list[int]) -> Episode:
    episode = model.episode(importance[None], torch.tensor([len(importance)]))
    for action in actions:
        episode.pick(torch.tensor([action]))
    return episode


def long_cases(reference: Any) -> list[Any]:
    """Those that have as many steps as fragments."""
    return [case for case in reference.file["cases"] if case["n_steps"] >= 60]


def test_fragments_match_the_authors_code(reference: Any) -> None:
    for case in long_cases(reference):
        inclusive = fragments(torch.tensor([case["n_steps"]]), 60)[0] - torch.tensor([0, 1])
        assert torch.equal(inclusive, reference.expected(case, "fragments").long())


def test_fragments_follow_float64_arithmetic_step_by_step() -> None:
    lengths = range(1, 1500)
    for n_steps, found in zip(lengths, fragments(torch.tensor(lengths), 60).tolist(), strict=True):
        size = n_steps / 60
        share = size % 1
        small, large = int(size), -int(-size // 1)
        sizes = [small] * round((1 - share) * 60) + [large] * round(share * 60)
        shift = int((60 * (1 - share)) / 2)
        sizes = sizes[shift:] + sizes[:shift]
        if sizes[-1] == 1:
            sizes[30] = 1
        starts = [sum(sizes[:i]) for i in range(60)]
        assert found == [[start, start + size] for start, size in zip(starts, sizes, strict=True)], n_steps


def test_actor_and_critic_see_what_the_authors_code_shows_them(reference: Any, model: Any, weights: Any) -> None:
    networks = Networks(model)
    load_reference_state_dict(networks, weights)
    for case in long_cases(reference):
        state = played(model, reference.expected(case), []).state
        with torch.no_grad():
            found = {
                "state0": state,
                "actor_probs0": model.actor(state).softmax(dim=-1),
                "critic0": networks["critic"](state),
            }
        for name, value in found.items():
            expected, tolerance = reference.expected(case, name), reference.file["tolerance"][name]
            torch.testing.assert_close(value.flatten(), expected, **tolerance)


def test_weighed_scores_match_the_authors_test_path(reference: Any, model: Any) -> None:
    """The authors' draws are replaced by nine actions, two of them repeats."""
    for case in long_cases(reference):
        importance = reference.expected(case)
        weighed = importance * played(model, importance, reference.file["forced_actions"]).weights()[0]
        tolerance = reference.file["tolerance"]["final_forced"]
        torch.testing.assert_close(weighed, reference.expected(case, "final_forced"), **tolerance)


def test_greedy_scores_match_in_a_padded_batch(reference: Any, weights: Any) -> None:
    model = build("ac_sum_gan", mode="greedy").eval()
    load_reference_state_dict(model, weights)
    features, lengths, expected = reference.batch(reference.file["cases"])
    with torch.no_grad():
        scores = model(features, lengths)
    for video, case in enumerate(reference.file["cases"]):
        n_steps = case["n_steps"]
        weighed = reference.expected(case, "final_greedy") if n_steps >= 60 else expected[video]
        torch.testing.assert_close(scores[video, :n_steps], weighed, **reference.file["tolerance"]["final_greedy"])
        assert not scores[video, n_steps:].any()


def test_samples_repeat_with_their_seed_alone_and_in_any_batch(reference: Any, weights: Any) -> None:
    features, lengths, _ = reference.batch(reference.file["cases"][:4])
    scores = []
    for seed in (1, 1, 2):
        model = build("ac_sum_gan", mode="sample", seed=seed).eval()
        load_reference_state_dict(model, weights)
        with torch.no_grad():
            scores.append(model(features, lengths))
            alone = model(features[3:4, : lengths[3]], lengths[3:4])
        torch.testing.assert_close(scores[-1][3, : lengths[3]], alone[0], atol=2e-6, rtol=0)
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2], atol=1e-3)


def test_samples_are_drawn_from_the_actors_distribution() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    noise = torch.cat([build("ac_sum_gan", feature_dim=1, hidden_size=1, seed=seed).gumbel for seed in range(200)])
    n_draws = noise.shape[0] * 20  # 60 columns hold 20 independent draws of three
    counts = (logits + noise.reshape(-1, 3)).argmax(dim=-1).bincount()
    deviation = (n_draws * logits.exp() * (1 - logits.exp())).sqrt()
    assert ((counts - n_draws * logits.exp()).abs() < 4 * deviation).all()


def test_a_repeated_pick_changes_nothing_and_fewer_steps_than_fragments_are_not_weighed() -> None:
    importance = torch.rand(2, 120)
    episode = Episode(importance, torch.tensor([120, 59]), 60, 9)
    assert episode.pick(torch.tensor([7, 7])).tolist() == [True, True]
    before = episode.weights()
    assert episode.pick(torch.tensor([7, 7])).tolist() == [False, False]
    assert torch.equal(episode.weights(), before)
    assert before[0].unique().tolist() == pytest.approx([0.85, 1.15])
    assert (before[1] == 1).all()
    assert episode.state[0, 7] == 0


def test_network_sizes_are_as_published(model: torch.nn.Module, reference: Any) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 524_800 + 10_503_169 + 1_112_124
    networks = Networks(model)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in networks.parameters()) == 26_748_991
    layout = networks.reference_views(networks.state_dict())
    assert {key: list(view.shape) for key, view in layout.items()} == {
        key: entry["shape"] for key, entry in reference.file["state_dict"].items()
    }


def test_options_rebuild_the_model() -> None:
    model = build("ac_sum_gan", feature_dim=8, hidden_size=4, num_layers="1", mode="GREEDY")
    again = build("ac_sum_gan", feature_dim=8, **model.options)
    again.load_state_dict(model.state_dict())
    assert again.options == model.options == again.options | {"mode": "greedy", "num_layers": 1, "termination_point": 9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode: expected one of scores, greedy, sample, got 'best'"),
        ({"termination_point": 61}, "termination_point: expected at most 60 picks, got 61"),
        ({"num_layers": 0}, "num_layers: expected a whole number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("ac_sum_gan", feature_dim=8, **options)
