"""What the packets of a video say of its pictures, undecoded: their order, and where decoding may begin and end.

Packets lie in a file in the order of decoding, pictures are shown by their time stamps. All that a copy needs follows
from these two orders; stated times of decoding, which containers leave out, round or shift, are not used. Four kinds
matter:

- an *entry*: a key picture at which a decoder may begin. Pictures that follow it in the file but are shown before it,
  the leading pictures of an open group, refer to the group before and are to be left out there.
- a *restart*: an entry that also ends what came before, so that it may follow the pictures of another place. An H.264
  key picture that is no IDR picture is none: its numbers of frames and of order go on from those before.
- a *clean end*: a place up to which the pictures are all those shown up to some time. Elsewhere a picture that is shown
  late was put early, for others to build on, and some that are shown before it are still to come.
- *hidden* pictures: decoded for others' sake and never shown, as at the start of a clip that was trimmed by its edit
  list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.media import parameter_sets


@dataclass(frozen=True)
class Pictures:
    """The pictures of a video in the order of decoding; place p is before the p-th of them, 0 <= p <= N."""

    pts: NDArray[np.int64]
    """[N] when each is shown, ticks."""
    rank: NDArray[np.int64]
    """[N] how many are shown before it, hidden ones included."""
    order: NDArray[np.int64]
    """[N] the place of the picture of each rank."""
    shown: NDArray[np.int64]
    """Ranks of the pictures that are not hidden, ascending."""
    entries: NDArray[np.int64]
    """Places where decoding may begin, ascending."""
    restarts: NDArray[np.int64]
    """Those of them that may follow pictures of another place."""
    clean_ends: NDArray[np.int64]
    """Places up to which the pictures are those shown up to some time, and so of the ranks below; the last is N."""
    changes: NDArray[np.int64]
    """Places of pictures whose parameters are not those that the container tells."""
    end: int
    """End of the last picture, ticks."""

    def time_of_rank(self, rank: int) -> int:
        """When the picture of a rank is shown, or the end for rank N; ticks."""
        return self.end if rank == len(self.pts) else int(self.pts[self.order[rank]])

    def ranks_at(self, times_s: NDArray[np.float64], first: int, tick_s: float) -> NDArray[np.int64]:
        """Ranks of the pictures shown from some starts to some ends [K, 2], in seconds after the tick `first`."""
        n_before = self._n_before(times_s, first, tick_s)
        n_before[:, 0] -= self.are_within(times_s, first, tick_s)[:, 0]
        return np.append(self.shown, self.shown[-1] + 1)[n_before]

    def are_within(self, times_s: NDArray[np.float64], first: int, tick_s: float) -> NDArray[np.bool_]:
        """Whether times lie within a picture: after its start and before the next one's."""
        starts_s = (np.append(self.pts[self.order[self.shown]], self.end) - first) * tick_s
        n_before = self._n_before(times_s, first, tick_s)
        return (n_before > 0) & (starts_s[n_before] - times_s > 1.5 * tick_s + 1e-3)

    def _n_before(self, times_s: NDArray[np.float64], first: int, tick_s: float) -> NDArray[np.int64]:
        shown_s = (self.pts[self.order[self.shown]] - first) * tick_s
        return np.searchsorted(shown_s, times_s - tick_s / 2)

    def entry_for(self, rank: int, *, restart: bool) -> int | None:
        """Place of the last entry, or restart, that is shown no later than the picture of a rank, or None."""
        places = self.restarts if restart else self.entries
        before = int(np.searchsorted(self.rank[places], rank, side="right")) - 1
        return None if before < 0 else int(places[before])

    def clean_end_for(self, low: int, high: int) -> int:
        """The first clean end by which the pictures of ranks low .. high - 1 have come."""
        last = int(self.order[low:high].max())
        return int(self.clean_ends[np.searchsorted(self.clean_ends, last, side="right")])


def read_pictures(packets: Iterable[tuple[Any, int, int]], codec: str, setup: bytes) -> Pictures:
    """Gather them.

    Parameters
    ----------
    packets
        of a video stream, each with when it is shown and for how long, in ticks; those without data left out
    codec
        FFmpeg's name of the codec
    setup
        parameters of the codec as the container tells them (extradata)
    """
    times, hidden, entries, restarts, changes = [], [], [], [], []
    end = -(1 << 62)
    known = parameter_sets.of_container(setup, codec)
    for place, (packet, pts, duration) in enumerate(packets):
        times.append(pts)
        hidden.append(packet.is_discard)
        if not packet.is_discard:
            end = max(end, pts + duration)
        if packet.is_keyframe:
            data = bytes(packet)
            can_begin, can_follow = parameter_sets.key_picture(data, setup, codec)
            if can_begin:
                entries.append(place)
            if can_follow:
                restarts.append(place)
            in_packet = parameter_sets.of_packet(data, setup, codec)
            known = known or in_packet
            if not in_packet <= known:
                changes.append(place)
    pts_ = np.array(times, dtype=np.int64)
    order = np.argsort(pts_, kind="stable")
    rank = np.empty(len(pts_), dtype=np.int64)
    rank[order] = np.arange(len(pts_))
    highest_before = np.maximum.accumulate(np.append(-1, rank))
    entries = [place for place in entries if highest_before[place] < rank[place]]
    return Pictures(
        pts=pts_,
        rank=rank,
        order=order,
        shown=np.flatnonzero(~np.array(hidden, dtype=bool)[order]),
        entries=np.array(entries, dtype=np.int64),
        restarts=np.intersect1d(entries, restarts).astype(np.int64),
        clean_ends=np.flatnonzero(highest_before == np.arange(-1, len(rank))),
        changes=np.array(changes, dtype=np.int64),
        end=end,
    )
