"""Every model on weights and videos that can be made again: it gives what the authors' code gives.

A case is one network of one golden file. Each of its videos is scored alone, and all but the longest are scored in one
batch with noise in the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from vsum_runtime.training.models import MODELS, build, load_reference_state_dict

Outputs = Mapping[str, Tensor]
"""Name in the golden file -> [B, T, ...]."""


def forward(model: Any, features: Tensor, lengths: Tensor) -> Outputs:
    outputs = model(features, lengths)
    return {"scores": outputs} if torch.is_tensor(outputs) else outputs._asdict()


def fcsn(model: Any, features: Tensor, lengths: Tensor) -> Outputs:
    return {"logits": model.logits(features, lengths).mT, "scores": model(features, lengths)}


def vslud(model: Any, features: Tensor, lengths: Tensor) -> Outputs:
    logits, scores = model.logits(features, lengths), model(features, lengths)
    summary = model.reconstruct(features, logits, scores, lengths)
    parts = {"summary_norm": summary.norm(dim=-1), "summary_ch64": summary[..., ::64]}
    return {"logits": logits.mT, "scores": scores, **parts}


def sspvs(model: Any, features: Tensor, lengths: Tensor) -> Outputs:
    stages = torch.stack(model.stage_scores(features, lengths), dim=-1)
    return {"stage_scores": stages, "frame_score": model(features, lengths)}


STEPS_LAST = ("logits", "stage_scores", "summary_ch64")
"""Outputs whose steps are the last axis in the golden files."""
NOT_MASKED = ("logits", "summary_norm", "summary_ch64")
"""Outputs that may hold anything in the padding."""


@dataclass(frozen=True)
class Case:
    model: str
    file: str = ""
    """Golden file; empty: the model's name."""
    outputs: Callable[[Any, Tensor, Tensor], Outputs] = forward
    config: str = ""
    """Key of the file's ``configs``; empty: it has one."""
    batch_below: int = 1000
    """Longer videos, in steps, are left out of the batch."""

    @property
    def name(self) -> str:
        return f"{self.model} {self.config}".strip()


CASES = [
    *(Case(name) for name in ("ac_sum_gan", "ca_sum", "dr_dsn", "dsnet_ab", "dsnet_af", "pgl_sum", "vasnet")),
    Case("csta", batch_below=320),
    Case("fcsn", "fcsn1d", fcsn),
    Case("vslud", "vslud_sk", vslud),
    *(Case("sspvs", outputs=sspvs, config=config, batch_below=200) for config in ("ts_c", "sm_c", "sm_a", "ts_a")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("unfilled_weights")
def test_outputs_match_the_authors_code_alone_and_in_a_padded_batch(case: Case, model_golden: Any) -> None:
    reference = model_golden(case.file or case.model)
    model = build(case.model, feature_dim=1024, **reference.options(case.config)).eval()
    load_reference_state_dict(model, reference.model_weights(model))
    videos = reference.videos(case.config)
    assert videos
    for video in videos:
        with torch.no_grad():
            outputs = case.outputs(model, reference.features(video["n_steps"])[None], torch.tensor([video["n_steps"]]))
        check(reference, video, {name: output[0] for name, output in outputs.items()})

    short = [video for video in videos if video["n_steps"] < case.batch_below]
    features, lengths = reference.padded(short)
    with torch.no_grad():
        outputs = case.outputs(model, features, lengths)
    for index, video in enumerate(short):
        n_steps = video["n_steps"]
        check(reference, video, {name: output[index, :n_steps] for name, output in outputs.items()})
        assert not any(output[index, n_steps:].any() for name, output in outputs.items() if name not in NOT_MASKED)


def check(reference: Any, video: Mapping[str, Any], outputs: Outputs) -> None:
    for name, output in outputs.items():
        expected = reference.expected(video, name)
        expected = expected.mT if name in STEPS_LAST else expected.reshape(output.shape)
        torch.testing.assert_close(output, expected, **reference.tolerance(name))


def test_every_published_model_has_a_case() -> None:
    assert {case.model for case in CASES} == MODELS.keys() - {"nonlocal_ridge"}  # which is our own
