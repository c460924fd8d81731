"""Which releases of other packages we support, read from our own metadata, and which of those installed are others.

pip keeps to the ranges; an environment that something else has changed since may not.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "vsum-runtime"


def why_unsupported(package: str) -> str | None:
    """A sentence where a release outside our range is installed; None where it is within, or not installed.

    It names the release, the range and the command that brings a release we support.
    """
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    for requirement in _requirements():
        if requirement.name == package and not requirement.specifier.contains(installed, prereleases=True):
            return (
                f"{package} {installed} is installed, {DISTRIBUTION} supports {requirement.specifier}: "
                f'pip install "{package}{requirement.specifier}"'
            )
    return None


def unsupported() -> list[str]:
    """A sentence for each installed package whose release is outside our range."""
    packages = dict.fromkeys(requirement.name for requirement in _requirements())
    return [sentence for package in packages if (sentence := why_unsupported(package)) is not None]


@cache
def _requirements() -> tuple[Requirement, ...]:
    """What our metadata asks for on this Python and system, whatever the extra; nothing where we are not installed."""
    try:
        from packaging.requirements import Requirement

        stated = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
        extras = ["", *(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [])]
    except (ImportError, metadata.PackageNotFoundError):
        return ()
    return tuple(
        requirement
        for requirement in stated
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    )
