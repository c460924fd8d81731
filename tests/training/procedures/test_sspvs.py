from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.training.resuming import assert_resumes
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.checkpoint import save_checkpoint
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build
from vsum_runtime.training.models.sspvs import SSPVS, SSPVSPretraining
from vsum_runtime.training.procedures import RECIPES
from vsum_runtime.training.procedures.sspvs import Summarizer, start, window
from vsum_runtime.training.procedures.sspvs_pretrain import Pretrainer, hausdorff, published_choice, read_feature_files

SMALL = {"nhead_vid": 2, "nhid_vid": 16, "nlayers_vid": 1, "iter": 2}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 32,
}
WITH_TEXT = SMALL | {"with_info_guide": True, "text_encoder": BERT}

Make = Callable[[], Any]


@pytest.fixture
def texts(tmp_path: Path, videos: list[Video]) -> str:
    """Side files of the made-up videos, each with words of its own."""
    for number, video in enumerate(videos):
        with h5py.File(tmp_path / f"{video.key}.h5", "w") as file:
            file["cat"], file["query"] = [200 + number], np.empty(0, np.int64)
            file["title"], file["description"] = (
                [300 + number, 310 + number],
                np.arange(400 + 20 * number, 409 + 20 * number),
            )
    return str(tmp_path)


def network(**options: Any) -> SSPVS:
    torch.manual_seed(0)
    model = build("sspvs", feature_dim=8, **options)
    assert isinstance(model, SSPVS)
    return model


@pytest.fixture(params=["without text", "with text", "pretraining"])
def make(request: pytest.FixtureRequest, texts: str) -> Make:
    """A fresh procedure, the same each time."""
    if request.param == "pretraining":
        small = {"window_steps": 32, "max_description": 8, "learning_rate": 1e-3, "repeats": 2, "texts": texts}
        return lambda: Pretrainer(network(**WITH_TEXT), replace(Pretrainer.defaults, **small), n_epochs=20)
    config = replace(Summarizer.defaults, window_steps=32, learning_rate=3e-3, batch_videos=2)
    if request.param == "without text":
        return lambda: Summarizer(network(**SMALL), config, n_epochs=20)
    return lambda: Summarizer(network(**WITH_TEXT), replace(config, texts=texts), n_epochs=20)


def test_training_improves_its_own_objective(make: Make, videos: list[Video]) -> None:
    procedure = make()
    log = [procedure.run_epoch(videos, epoch) for epoch in range(1, 21)]
    assert all(torch.isfinite(parameter).all() for parameter in procedure.networks.parameters())
    assert sum(line["loss"] for line in log[-5:]) < 0.9 * sum(line["loss"] for line in log[:5])


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(make: Make, videos: list[Video]) -> None:
    assert_resumes(make, videos)


def test_the_loss_of_a_window_counts_its_padding_and_scales_with_it(videos: list[Video]) -> None:
    model = network(**SMALL | {"dropout_vid": 0})
    for stage in model.score_predict:
        stage[0].p = 0.0  # type: ignore[index]
    video = replace(videos[1], gtscore=np.linspace(1, 3, 25, dtype=np.float32))
    config = replace(Summarizer.defaults, window_steps=30, learning_rate=0.0)
    found = Summarizer(model, config, n_epochs=1).run_epoch([video], 1)
    features = torch.zeros(1, 30, 8)
    features[0, :25] = torch.from_numpy(video.features)
    target = torch.cat((torch.linspace(1, 3, 25) / 3, torch.zeros(5)))  # the least value is that of the padding
    with torch.no_grad():
        expected = (model(features, torch.tensor([30]))[0] - target).square().mean().item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_constant_importance_is_a_target_of_zeros(videos: list[Video]) -> None:
    constant = [replace(video, gtscore=np.full(len(video.picks), 2, np.float32)) for video in videos]
    procedure = Summarizer(network(**SMALL), replace(Summarizer.defaults, window_steps=20), n_epochs=1)
    assert 0 < procedure.run_epoch(constant, 1)["loss"] < 1


def test_windows_are_random_parts_of_long_videos_and_padded_short_ones(videos: list[Video]) -> None:
    torch.manual_seed(0)
    features = torch.from_numpy(videos[0].features)
    starts = set()
    for _ in range(60):
        rows, first = window(videos[0], 37)
        assert torch.equal(rows, features[first : first + 37])
        starts.add(first)
    assert starts == {0, 1, 2, 3}
    rows, first = window(videos[0], 45)
    assert first == 0
    assert torch.equal(rows[:40], features)
    assert not rows[40:].any()


def test_scores_at_test_use_the_whole_video_and_uncut_text(texts: str, videos: list[Video]) -> None:
    procedure = Summarizer(network(**WITH_TEXT), replace(Summarizer.defaults, texts=texts, max_title=1), n_epochs=1)
    model = procedure.networks["model"]
    ids = torch.tensor([[101, 202, 102, 102, 302, 312, 102]])
    with torch.no_grad():
        text = model.eval().encode_text(ids, torch.tensor([7]))  # type: ignore[operator]
        features = torch.from_numpy(videos[2].features)[None]
        expected = model(features, torch.tensor([61]), text)[0]
    np.testing.assert_allclose(procedure.score(videos[2]), expected.numpy(), atol=1e-6)


def test_the_frozen_part_of_bert_stays_and_the_rest_is_trained(texts: str, videos: list[Video]) -> None:
    model = network(**WITH_TEXT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    procedure = Summarizer(model, replace(Summarizer.defaults, texts=texts, window_steps=20), n_epochs=1)
    procedure.run_epoch(videos, 1)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {name for name in before if name.startswith(("text.bert.embeddings.", "text.bert.encoder."))}


def test_pretraining_leaves_score_layers_alone_and_validates_without_training(texts: str, videos: list[Video]) -> None:
    model = network(**WITH_TEXT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = replace(Pretrainer.defaults, texts=texts, window_steps=20, max_description=8, learning_rate=1e-3)
    procedure = Pretrainer(model, config, n_epochs=1)
    names = {"loss", "match", "mask", "fine", "match_accuracy"}
    assert procedure.run_epoch(videos, 1).keys() == names
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    unused = {name for name in before if name.startswith("score_predict.")}
    assert same == unused | {"text.bert.embeddings.token_type_embeddings.weight"} or same == unused
    after = {name: tensor.clone() for name, tensor in procedure.networks.state_dict().items()}
    torch.manual_seed(5)
    found = procedure.validate(videos, 1)
    torch.manual_seed(5)
    assert procedure.validate(videos, 1) == found
    assert found.keys() == {f"validation_{name}" for name in names}
    assert all(torch.equal(tensor, after[name]) for name, tensor in procedure.networks.state_dict().items())


def test_half_of_the_texts_are_the_videos_own_and_the_labels_say_which(
    texts: str, videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that recognises each video and its words is right every time, and says "own" half of the time."""
    config = replace(Pretrainer.defaults, texts=texts, window_steps=20, max_description=8)
    procedure = Pretrainer(network(**WITH_TEXT), config, n_epochs=1)
    forward, own = SSPVSPretraining.forward, []

    def knowing(self: Any, features: Any, lengths: Any, masked_step: Any, ids: Any, id_lengths: Any) -> Any:
        owner = [next(n for n, video in enumerate(videos) if row[0].numpy() in video.features) for row in features]
        own.append(ids[:, 1] - 200 == torch.tensor(owner))
        outcome = forward(self, features, lengths, masked_step, ids, id_lengths)
        return outcome._replace(match=torch.where(own[-1], 50.0, -50.0))

    monkeypatch.setattr(SSPVSPretraining, "forward", knowing)
    torch.manual_seed(0)
    for epoch in range(50):
        assert procedure.validate(videos, epoch)["validation_match_accuracy"] == 1.0
    draws = torch.cat(own).float()
    assert abs(draws.mean().item() - 0.5) < 4 * 0.5 / len(draws) ** 0.5


def test_hausdorff_distance_and_its_gradient_by_hand() -> None:
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    y = torch.tensor([[[0.0, 3.0], [0.0, 1.0], [0.0, 0.5]]], requires_grad=True)
    distance = hausdorff(x, y)
    assert distance.item() == 3.0  # from y's first row to its nearest in x, the origin
    distance.backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad[0].tolist() == [[0.0, -1.0], [0.0, 0.0]]
    assert y.grad[0].tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert hausdorff(y.detach(), x.detach()).item() == 3.0


def test_a_summarizer_starts_from_a_checkpoint_of_the_pretrainer(texts: str, tmp_path: Path) -> None:
    guided, plain = network(**WITH_TEXT), network(**SMALL)
    torch.manual_seed(9)
    for parameter in guided.parameters():
        parameter.data.normal_()
    names = ("dataset", "splits", "split", "seed", "epoch", "selection")
    metadata = {"model": "sspvs", "options": guided.options, "feature_dim": 8, "feature_norm": "none"}
    save_checkpoint(tmp_path / "best.safetensors", guided, metadata | dict.fromkeys(names))
    before = plain.state_dict()["score_predict.0.1.weight"].clone()
    config = replace(Summarizer.defaults, start=str(tmp_path / "best.safetensors"))
    Summarizer(plain, config, n_epochs=1)
    assert torch.equal(plain.v_cls, guided.v_cls)
    assert torch.equal(plain.encoder.layers[0].linear1.weight, guided.encoder.layers[0].linear1.weight)  # type: ignore[union-attr]
    assert torch.equal(plain.state_dict()["score_predict.0.1.weight"], before)
    with pytest.raises(InputError, match=r"its encoders .* do not fit"):
        start(network(**SMALL | {"nlayers_vid": 2}), config.start or "")


def test_a_summarizer_starts_from_the_authors_file(tmp_path: Path) -> None:
    views = SSPVSPretraining(network(**WITH_TEXT))
    content = {f"video_model.{k}": v.clone() for k, v in views.reference_views(views.state_dict()).items()}
    torch.save({"state_dict": content, "epoch": 3}, tmp_path / "authors.ckpt")
    plain = network(**SMALL | {"iter": 3})
    plain.v_cls.data.zero_()
    start(plain, tmp_path / "authors.ckpt")
    assert torch.equal(plain.v_cls, content["video_model.v_cls.weight"])
    (tmp_path / "other.ckpt").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="expected a pretraining checkpoint, cannot read it"):
        start(plain, tmp_path / "other.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="with an entry state_dict"):
        start(plain, tmp_path / "other.ckpt")


def test_text_is_required_where_it_is_used(texts: str, videos: list[Video]) -> None:
    with pytest.raises(InputError, match="name the folder of token-id side files"):
        Summarizer(network(**WITH_TEXT), Summarizer.defaults, n_epochs=1)
    with pytest.raises(InputError, match="name the folder of token-id side files"):
        Pretrainer(network(**WITH_TEXT), Pretrainer.defaults, n_epochs=1)
    config = replace(Pretrainer.defaults, texts=texts)
    with pytest.raises(InputError, match="with_info_guide=true"):
        Pretrainer(network(**SMALL), config, n_epochs=1)
    with pytest.raises(InputError, match="expected two videos or more"):
        Pretrainer(network(**WITH_TEXT), config, n_epochs=1).run_epoch(videos[:1], 1)


def test_a_random_text_encoder_is_announced(texts: str, caplog: pytest.LogCaptureFixture) -> None:
    Summarizer(network(**WITH_TEXT), replace(Summarizer.defaults, texts=texts), n_epochs=1)
    Pretrainer(network(**WITH_TEXT), replace(Pretrainer.defaults, texts=texts), n_epochs=1)
    assert caplog.text.count("the text encoder") == 2
    assert network(**WITH_TEXT).options["text_encoder"]["weights"] == "random"


def test_published_settings_build() -> None:
    for name, recipe in RECIPES.items():
        if recipe.procedure == "sspvs:Summarizer":
            small = {"text_encoder": BERT} if "with_info_guide" in recipe.options else {}
            model = network(**SMALL | recipe.options | small)
            assert len(model.score_predict) == recipe.options["iter"], name
    for name, n_ids in (("sspvs_sm_c_tg", 9), ("sspvs_ts_c_tg", 18)):
        config = replace(Summarizer.defaults, **RECIPES[name].settings)
        assert config.max_cat + config.max_query + config.max_title + 4 == n_ids


def test_the_published_choice_looks_at_every_second_epoch() -> None:
    accuracies = (0.9, 0.6, 0.95, 0.8, 0.7, 0.8)
    assert published_choice([{"validation_match_accuracy": value} for value in accuracies]) == 4
    assert published_choice([{"loss": 1.0}, {"loss": 2.0}, {"loss": 1.5}]) == 3


def test_a_folder_of_feature_files_is_a_data_set(tmp_path: Path) -> None:
    features = np.random.default_rng(0).random((5, 8)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = features
    (tmp_path / "train.json").write_text('["a"]')
    dataset = read_feature_files(tmp_path, tmp_path / "train.json")
    assert dataset.name == "train"
    assert np.array_equal(dataset.videos["a"].features, features)
    assert dataset.videos["a"].picks.tolist() == [0, 15, 30, 45, 60]
    for content, message in (
        ('["b"]', r"b.h5: expected an HDF5 file with features"),
        ('{"a": 1}', "expected a JSON list of video ids"),
        ("[", "expected a JSON list of video ids"),
    ):
        (tmp_path / "train.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_feature_files(tmp_path, tmp_path / "train.json")
