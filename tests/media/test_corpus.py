"""A few clips of the corpus; all of them: `make corpus`. What the committed table calls wrong has a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.media.corpus import CLIPS, REASONS, outcomes

TABLE = Path(__file__).parents[2] / "docs" / "corpus.md"


@pytest.mark.parametrize(
    "name", ["h264-b.mkv", "hevc-open-groups.ts", "mid-group.ts", "trimmed.mp4", "wraps.ts", "mpeg4-b-pcm.avi"]
)
def test_reading_and_every_cut_are_right(name: str) -> None:
    assert {outcome.split(":")[0] for outcome in outcomes(name).values()} <= {"right", "exact"}


def test_a_copy_is_refused_where_no_time_stamp_tells_the_order_of_pictures() -> None:
    result = outcomes("h264-b-pcm.avi")
    assert (result["read"], result["exact"]) == ("right", "right")
    assert result["copy"].startswith("refused: its time stamps do not tell in which order its pictures are shown")
    assert result["smart"].startswith("exact: ")


def test_the_table_has_every_clip_and_reasons_for_what_is_wrong() -> None:
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+)$", TABLE.read_text(encoding="utf-8"), flags=re.M))
    assert set(rows) == set(CLIPS)
    assert {name for name, cells in rows.items() if "wrong" in cells} <= set(REASONS)
    assert not any("not " in cells for cells in rows.values())
