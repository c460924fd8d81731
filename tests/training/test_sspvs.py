from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.sspvs import SSPVS, SSPVSPretraining, start_from_pretraining
from vsum_runtime.training.procedures.sspvs_pretrain import losses

SMALL = {"nhead_vid": 4, "nhid_vid": 48, "nlayers_vid": 2}
WITH_TEXT = SMALL | {"with_info_guide": True, "text_encoder": "small"}


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("sspvs")


@pytest.fixture(scope="module")
def text_weights(reference: Any) -> dict[str, np.ndarray]:
    """The 203 tensors of BERT base and its projection, which the tests with text share."""
    weights: dict[str, np.ndarray] = reference.weights(reference.file["state_dict_text_branch"], {})
    return weights


def reference_model(reference: Any, name: str, text_weights: dict[str, np.ndarray] | None = None) -> SSPVS:
    config = reference.file["configs"][name]
    stages = tuple(f"score_predict.{stage}." for stage in range(config["iter"], 9))
    layout = {key: entry for key, entry in reference.file["state_dict"].items() if not key.startswith(stages)}
    model = build("sspvs", feature_dim=1024, **config).eval()
    weights = reference.weights(layout, reference.file["overrides"]) | (text_weights or {})
    load_reference_state_dict(model, weights)
    assert isinstance(model, SSPVS)
    return model


def cases(reference: Any, config: str) -> list[Any]:
    return [case for case in reference.file["cases"] if case["config"] == config]


def check(reference: Any, case: Any, stages: Tensor) -> None:
    tolerance = reference.file["tolerance"]
    expected_stages, expected = (
        torch.from_numpy(reference.arrays[f"{case['name']}/{output}"]) for output in ("stage_scores", "frame_score")
    )
    torch.testing.assert_close(stages, expected_stages, atol=tolerance["stage_scores_atol"], rtol=0)
    bounds = {"atol": tolerance["frame_score_atol"], "rtol": tolerance["frame_score_rtol"]}
    torch.testing.assert_close(stages.prod(dim=0), expected, **bounds)


def batch(reference: Any, cases: list[Any]) -> tuple[Tensor, Tensor]:
    """The videos of ``cases`` with noise in the padding, and their lengths."""
    lengths = torch.tensor([case["n_steps"] for case in cases])
    noise = torch.Generator().manual_seed(1)
    features = 3 * torch.randn(len(cases), int(lengths.max()) + 2, 1024, generator=noise)
    for video, n_steps in enumerate(lengths.tolist()):
        features[video, :n_steps] = reference.features(n_steps)
    return features, lengths


@pytest.mark.slow
def test_scores_guided_by_text_match_the_authors_code_in_a_padded_batch(reference: Any, text_weights: Any) -> None:
    model = reference_model(reference, "ts_c_tg", text_weights)
    guided = cases(reference, "ts_c_tg")
    id_lengths = torch.tensor([len(case["info_ids"]) for case in guided])
    ids = torch.full((len(guided), int(id_lengths.max())), 77)
    for video, case in enumerate(guided):
        ids[video, : len(case["info_ids"])] = torch.tensor(case["info_ids"])
    with torch.no_grad():
        stages = torch.stack(model.stage_scores(*batch(reference, guided), model.encode_text(ids, id_lengths)))
    for video, case in enumerate(guided):
        check(reference, case, stages[:, video, : case["n_steps"]])


def test_a_score_is_the_product_of_its_stages_and_0_in_the_padding() -> None:
    model = build("sspvs", feature_dim=32, **SMALL).eval()
    features, lengths = torch.randn(3, 9, 32), torch.tensor([9, 4, 1])
    scores = model(features, lengths)
    torch.testing.assert_close(scores, torch.stack(model.stage_scores(features, lengths)).prod(dim=0))  # type: ignore[operator]
    assert (scores > 0).sum(dim=1).tolist() == lengths.tolist()


@pytest.mark.slow
def test_pretraining_outputs_and_losses_match_the_authors_code(reference: Any, text_weights: Any) -> None:
    case = reference.file["ssl_case"]
    config = case["config"]
    shared = {key: config[key] for key in ("text_trainable", "dropout_vid", "nhead_vid", "nhid_vid", "nlayers_vid")}
    model = build("sspvs", iter=1, with_info_guide=True, **shared)
    assert isinstance(model, SSPVS)
    heads = {key: config[key] for key in ("window_size", "dropout_classifier", "pos_enc_weight")}
    network = SSPVSPretraining(model, **heads).eval()
    weights = reference.weights(reference.file["ssl_state_dict"], reference.file["ssl_overrides"])
    load_reference_state_dict(network, weights | text_weights)
    trained = sum(
        p.numel() for name, p in network.named_parameters() if "score_predict" not in name and p.requires_grad
    )
    assert trained == case["requires_grad_in_original"]

    features = torch.zeros(2, case["padded_len"], 1024)
    for video, n_real in enumerate(case["n_real"]):
        salt = f"{reference.file['salt']}-ssl{video}"
        features[video, :n_real] = torch.from_numpy(reference.fill.features(n_real, 1024, salt))
    both, masked_step = torch.arange(2), torch.tensor(case["masked_pos"])
    lengths, id_lengths = torch.full((2,), case["padded_len"]), torch.full((2,), case["text_tokens"])
    with torch.no_grad():
        outcome = network(features, lengths, masked_step, torch.tensor(case["info_ids"]), id_lengths)
        factors = {key: config[key] for key in ("alpha1", "alpha2", "margin")}
        found = losses(outcome, features[both, masked_step], torch.tensor(case["labels"]).float(), **factors)
    outputs = {
        "predict_mask_feature": outcome.recovered,
        "prob_v": outcome.match.sigmoid(),
        "encoded_cls": outcome.frames[:, 0],
        "encoded_frame_at_mask": outcome.frames[both, masked_step + 1],
        "encoded_word_first": outcome.words[:, 0],
    }
    atol = reference.file["tolerance"]["ssl_atol"]
    for name, value in outputs.items():
        torch.testing.assert_close(value, torch.from_numpy(reference.arrays[f"ssl/{name}"]), atol=atol, rtol=0)
    names = {"match": "video_text_loss", "mask": "mask_predict_loss", "fine": "contrast_loss", "loss": "loss"}
    expected = {ours: case["losses"][theirs] for ours, theirs in names.items()}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=atol)


def test_options_rebuild_the_model_and_survive_json() -> None:
    model = build("sspvs", feature_dim=32, Iter="2", missing_text="empty", **WITH_TEXT)
    again = build("sspvs", feature_dim=32, **json.loads(json.dumps(model.options)))
    assert again.options == model.options
    again.load_state_dict(model.state_dict())
    ids, lengths = torch.randint(1000, (2, 6)), torch.tensor([6, 4])
    with torch.no_grad():
        assert torch.equal(model.eval().encode_text(ids, lengths), again.eval().encode_text(ids, lengths))  # type: ignore[operator]


def test_bert_is_frozen_but_for_its_pooler_until_pretraining() -> None:
    model = build("sspvs", feature_dim=32, **WITH_TEXT)
    assert isinstance(model, SSPVS)
    frozen = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"embeddings", "encoder"}
    SSPVSPretraining(model)
    assert all(p.requires_grad for p in model.parameters())
    fixed = build("sspvs", feature_dim=32, text_trainable=False, **WITH_TEXT)
    assert {name.split(".")[2] for name, p in fixed.named_parameters() if not p.requires_grad} == frozen | {"pooler"}


def test_pads_inside_a_text_row_count_and_ids_past_its_length_do_not() -> None:
    model = build("sspvs", feature_dim=32, **WITH_TEXT).eval()
    row = [101, 7, 102, 0, 0]
    with torch.no_grad():
        vectors = model.encode_text(torch.tensor([row, row, [101, 7, 102, 9, 9]]), torch.tensor([5, 3, 3]))  # type: ignore[operator]
        alone = model.encode_text(torch.tensor([row[:3]]), torch.tensor([3]))  # type: ignore[operator]
    torch.testing.assert_close(vectors[1:], alone.expand(2, -1))
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_a_missing_text_is_refused_or_read_as_empty_fields() -> None:
    features, lengths = torch.rand(2, 5, 32), torch.tensor([5, 2])
    model = build("sspvs", feature_dim=32, **WITH_TEXT).eval()
    with pytest.raises(InputError, match=r"trained with text and got none.*missing_text=empty"):
        model(features, lengths)
    lenient = build("sspvs", feature_dim=32, missing_text="empty", **WITH_TEXT).eval()
    lenient.load_state_dict(model.state_dict())
    empty = lenient.encode_text(torch.tensor([[101, 102, 102, 102]] * 2), torch.tensor([4, 4]))  # type: ignore[operator]
    torch.testing.assert_close(lenient(features, lengths), model(features, lengths, empty))
    without = model(features, lengths, torch.zeros(2, 32))
    assert not torch.allclose(without, model(features, lengths, empty), atol=1e-6)


def test_pretraining_is_exact_in_a_padded_batch() -> None:
    model = build("sspvs", feature_dim=32, **WITH_TEXT)
    assert isinstance(model, SSPVS)
    network = SSPVSPretraining(model).eval()
    lengths, masked_step = torch.tensor([11, 3, 1]), torch.tensor([10, 0, 0])
    features, ids, id_lengths = torch.randn(3, 11, 32), torch.randint(1000, (3, 9)), torch.tensor([4, 9, 1])
    with torch.no_grad():
        batch = network(features, lengths, masked_step, ids, id_lengths)
        for b in range(3):
            row = slice(b, b + 1)
            n_steps, n_ids = int(lengths[b]), int(id_lengths[b])
            alone = network(features[row, :n_steps], lengths[row], masked_step[row], ids[row, :n_ids], id_lengths[row])
            torch.testing.assert_close(batch.match[row], alone.match)
            torch.testing.assert_close(batch.recovered[row], alone.recovered)
            torch.testing.assert_close(batch.frames[row, : n_steps + 1], alone.frames)
            torch.testing.assert_close(batch.words[row, :n_ids], alone.words)


def pretrained(feature_dim: int = 32, **options: Any) -> dict[str, Tensor]:
    """State dict of a pretraining checkpoint in the authors' layout."""
    model = build("sspvs", feature_dim=feature_dim, **WITH_TEXT | options)
    assert isinstance(model, SSPVS)
    network = SSPVSPretraining(model)
    views = network.reference_views(network.state_dict())
    return {f"video_model.{name}": tensor.clone() for name, tensor in views.items()} | {
        "video_model.pos_encoder.pe": torch.zeros(5000, 1, feature_dim)
    }


@pytest.mark.parametrize("options", [SMALL, WITH_TEXT], ids=["without text", "with text"])
def test_a_summarizer_starts_from_the_authors_pretraining_checkpoint(options: dict[str, Any]) -> None:
    checkpoint = pretrained()
    model = build("sspvs", feature_dim=32, **options)
    assert isinstance(model, SSPVS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from_pretraining(model, checkpoint)
    for name, view in model.reference_views(model.state_dict()).items():
        if name.startswith("score_predict."):
            assert torch.equal(view, before[name])
        else:
            assert torch.equal(view, checkpoint[f"video_model.{name}"]), name


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"v_cls.weight": torch.zeros(1, 32)}, "missing encoder_|missing transformer_encoder.layers.0"),
        (pretrained(16), "v_cls.weight expected \\[1, 32\\], got \\[1, 16\\]"),
        (pretrained(nlayers_vid=1), "missing transformer_encoder.layers.1"),
    ],
)
def test_another_pretraining_checkpoint_is_refused(checkpoint: dict[str, Tensor], message: str) -> None:
    model = build("sspvs", feature_dim=32, **SMALL)
    assert isinstance(model, SSPVS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        start_from_pretraining(model, checkpoint)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nhead_vid": 5}, "nhead_vid: 5 heads do not divide the 32 features"),
        ({"iter": 0}, "iter: expected a whole number"),
        ({"d_model": 1024}, "d_model: expected 1024, but this model has 32"),
        ({"parameters": 37793796}, "parameters: expected 37793796, but this model has"),
        (WITH_TEXT | {"d_text": 768}, "d_text: expected 768, but this model has 128"),
        ({"missing_text": "guess"}, "missing_text: expected one of refuse, empty, got 'guess'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("sspvs", feature_dim=32, **SMALL | options)


def test_bad_calls_are_refused() -> None:
    plain, guided = (build("sspvs", feature_dim=32, pos_max_len=8, **options).eval() for options in (SMALL, WITH_TEXT))
    features, lengths = torch.rand(1, 7, 32), torch.tensor([7])
    plain(features, lengths)
    with pytest.raises(InputError, match="expected T < pos_max_len = 8, got T=8"):
        plain(torch.rand(1, 8, 32), torch.tensor([8]))
    with pytest.raises(InputError, match=r"text: expected none, got \[1, 32\]"):
        plain(features, lengths, torch.zeros(1, 32))
    with pytest.raises(InputError, match=r"text: expected \[1, 32\], got \[2, 32\]"):
        guided(features, lengths, torch.zeros(2, 32))
    with pytest.raises(InputError, match="built without a text branch"):
        plain.encode_text(torch.tensor([[101]]), torch.tensor([1]))  # type: ignore[operator]
    for ids, message in (
        (torch.zeros(1, 513, dtype=torch.int64), r"expected int64 \[B, L\], L of 1..512, got torch.int64 \[1, 513\]"),
        (torch.tensor([[30522]]), r"expected ids of 0..30521, got 30522..30522"),
    ):
        with pytest.raises(InputError, match=message):
            guided.encode_text(ids, torch.tensor([ids.shape[1]]))  # type: ignore[operator]
    with pytest.raises(InputError, match="with_info_guide=true"):
        SSPVSPretraining(plain)  # type: ignore[arg-type]
