"""PyAV's rationals: one kind up to release 18, another from 19 on, and several ways of not being set."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import av
import pytest

from vsum_runtime.runtime.media.rational import fraction, frame_rate, time_base

Rational: Any = getattr(av, "AVRational", Fraction)


def test_a_rational_is_a_fraction() -> None:
    fine = fraction(Rational(1, 90000))
    assert type(fine) is Fraction
    assert fine == Fraction(1, 90000)
    assert fine * Fraction(1, 65537) == Fraction(1, 90000 * 65537)  # does not fit into the library's 32 bits


@pytest.mark.parametrize("unset", [None, Fraction(0), Rational(0, 1), SimpleNamespace(numerator=1, denominator=0)])
def test_what_is_not_set_is_none(unset: Any) -> None:
    assert fraction(unset) is None
    assert frame_rate(SimpleNamespace(average_rate=unset, guessed_rate=unset)) is None
    assert frame_rate(SimpleNamespace(average_rate=unset, guessed_rate=Rational(25, 1))) == 25
    with pytest.raises(ValueError, match="no time base"):
        time_base(SimpleNamespace(time_base=unset))


def test_what_a_file_says(media: Any) -> None:
    with av.open(str(media.film("film.mkv", 3, rate=Fraction(30000, 1001)))) as container:
        stream = container.streams.video[0]
        assert (time_base(stream), frame_rate(stream)) == (Fraction(1, 1000), Fraction(30000, 1001))
        assert type(time_base(stream)) is type(frame_rate(stream)) is Fraction
