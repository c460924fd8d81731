"""What must hold for training that was stopped and resumed: it ends with the bits of training that was not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vsum_runtime.training.checkpoint import load_checkpoint
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.runs import RunFolder


def assert_resumes(make: Callable[[], Any], videos: Sequence[Video]) -> None:
    """Two epochs of a procedure equal one epoch, and another by a fresh procedure with the state of the first."""
    straight, first, second = make(), make(), make()
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        expected = straight.run_epoch(videos, epoch)
    torch.manual_seed(1)
    first.run_epoch(videos, 1)
    second.networks.load_state_dict(first.networks.state_dict())
    for name, optimizer in first.optimizers.items():
        second.optimizers[name].load_state_dict(optimizer.state_dict())
    torch.manual_seed(2)
    assert second.run_epoch(videos, 2) == expected
    assert_same_tensors(straight.networks.state_dict(), second.networks.state_dict())


def assert_same_run(straight: Path, resumed: Path) -> None:
    """The folders of two runs hold the same weights, the same state to resume from and the same objectives."""
    one, other = RunFolder(straight), RunFolder(resumed)
    for file in ("best", "last"):
        assert_same_tensors(*(load_checkpoint(getattr(folder, file))[0] for folder in (one, other)))
    logs = [[line["objectives"] for line in folder.read_log()] for folder in (one, other)]
    assert logs[0]
    assert logs[0] == logs[1]


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
