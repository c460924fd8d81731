"""Small made-up videos to train on."""

from __future__ import annotations

import numpy as np
import pytest

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import fcsn


@pytest.fixture
def videos(rng: np.random.Generator) -> list[Video]:
    """Four videos of 8 features; a step is the more important the larger its first one."""
    made = []
    for number, n_steps in enumerate((40, 25, 61, 33)):
        shot = np.repeat(np.arange(n_steps // 5 + 1), 5)[:n_steps]
        features = rng.random((n_steps // 5 + 1, 8))[shot] + 0.1 * rng.random((n_steps, 8))
        bounds = np.append(np.arange(0, n_steps, 5) * 15, n_steps * 15)
        made.append(
            Video(
                key=f"video_{number}",
                n_frames=n_steps * 15,
                picks=np.arange(n_steps) * 15,
                features=features.astype(np.float32),
                gtscore=features[:, 0].astype(np.float32),
                shots=np.stack((bounds[:-1], bounds[1:]), axis=1),
            )
        )
    return made


@pytest.fixture
def narrow_fcsn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channels of FCSN are fixed and many; with fewer of them a test trains it in seconds."""
    narrow = {variant: tuple((8,) * len(widths) for widths in blocks) for variant, blocks in fcsn._BLOCKS.items()}
    monkeypatch.setattr(fcsn, "_BLOCKS", narrow)
    monkeypatch.setattr(fcsn, "_TOP", 32)
