"""Options of a model, as its authors spell them -> one canonical value, or an InputError that names the choices."""

from __future__ import annotations

import inspect
from typing import Any

from vsum_runtime.runtime.errors import InputError

_MOST = 1e30


def chosen(model: Any) -> dict[str, Any]:
    """The options a model was built with: each of its class's keyword-only arguments, kept under the same name."""
    parameters = inspect.signature(type(model)).parameters.values()
    return {option.name: getattr(model, option.name) for option in parameters if option.kind == option.KEYWORD_ONLY}


def choice(option: str, value: Any, allowed: tuple[str | None, ...]) -> str | None:
    """The entry of ``allowed`` that ``value`` spells, whatever its capitals; "none" is None.

    >>> choice("fusion", "ADD", (None, "add", "mult"))
    'add'
    """
    spelt = _none_or_lower(value)
    for entry in allowed:
        if spelt == _none_or_lower(entry):
            return entry
    raise InputError(f"{option}: expected one of {', '.join(map(str, allowed))}, got {value!r}")


def flag(option: str, value: Any) -> bool:
    """True or False, also as text."""
    spelt = _none_or_lower(value)
    if spelt not in (True, False, "true", "false"):
        raise InputError(f"{option}: expected true or false, got {value!r}")
    return spelt in (True, "true")


def whole(option: str, value: Any, default: int | None = None, *, least: int) -> int:
    """An integer >= ``least``, also as text; ``default`` for None."""
    try:
        number = real(option, value, default, least=least)
    except InputError:
        number = 0.5
    if number != int(number):
        raise InputError(f"{option}: expected a whole number, {least} or more, got {value!r}")
    return int(number)


def real(option: str, value: Any, default: float | None = None, *, least: float, most: float = _MOST) -> float:
    """A number of [least, most], also as text; ``default`` for None."""
    spelt: Any = default if _none_or_lower(value) is None else value
    try:
        number = float("nan") if isinstance(spelt, bool) else float(spelt)
    except (TypeError, ValueError):
        number = float("nan")
    if not least <= number <= most:
        bounds = f"{least:g} or more" if most == _MOST else f"{least:g} to {most:g}"
        raise InputError(f"{option}: expected a number, {bounds}, got {value!r}")
    return number


def _none_or_lower(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return None if value.lower() == "none" else value.lower()
