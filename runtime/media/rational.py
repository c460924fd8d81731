"""The one place where a rational number of PyAV becomes one of Python.

Time bases, rates and pixel shapes are `fractions.Fraction` or None up to PyAV 18, and `av.AVRational` from 19 on: no
`Fraction`, two of which multiply with rounding, and zero where the file states nothing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any


def fraction(rational: Any) -> Fraction | None:
    """A rational of PyAV, of any supported release, as an exact fraction; None where it is unset (None, 0/1, 0/0).

    >>> fraction(Fraction(1, 90000)), fraction(None), fraction(Fraction(0))
    (Fraction(1, 90000), None, None)
    """
    if not rational or not rational.denominator:
        return None
    return Fraction(rational.numerator, rational.denominator)


def time_base(holder: Any) -> Fraction:
    """Seconds per tick of a stream, packet or frame."""
    tick_s = fraction(holder.time_base)
    if tick_s is None:
        raise ValueError(f"{holder!r} has no time base")
    return tick_s


def frame_rate(stream: Any) -> Fraction | None:
    """Frames per second of a video stream, None where they are not known.

    The average that the file states, unless FFmpeg's guess of the greatest rate is less than half of that: such an
    average is the clock's rate and not that of the pictures, as in raw DV.
    """
    average, guess = fraction(stream.average_rate), fraction(stream.guessed_rate)
    if average is None or (guess is not None and 2 * guess < average):
        return guess
    return average
