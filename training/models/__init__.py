"""The model table: every architecture this project knows, by name.

All models are called alike: ``model(features, lengths)`` takes features float32 [B, T, D] and lengths int64 [B] and
returns scores float32 [B, T]. What stands in the padding (steps ``t >= lengths[b]``) never changes a valid score,
padded scores are 0, and any T >= 1 works. A model also has

- ``feature_dim`` (D) and ``options``: ``build(name, feature_dim=model.feature_dim, **model.options)`` makes it again;
- ``output``: "scores";
- ``reference_views(tensors)``: tensors by our parameter names -> views of them by the authors' names;
- ``reference_unused()``: the authors' other names -> shape; such entries may be present and are not used.

To add a model: (1) write ``training/models/<name>.py`` with one class that meets the list above, its options
keyword-only arguments in lower case; (2) add its line to ``MODELS``; (3) add a test against the authors' outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

if TYPE_CHECKING:
    import torch

MODELS = {
    "ac_sum_gan": "training.models.ac_sum_gan:ACSUMGAN",
    "csta": "training.models.csta:CSTA",
    "pgl_sum": "training.models.pgl_sum:PGLSum",
    "sspvs": "training.models.sspvs:SSPVS",
    "vasnet": "training.models.vasnet:VASNet",
    "dsnet_ab": "training.models.dsnet:DSNetAB",
    "dsnet_af": "training.models.dsnet:DSNetAF",
    "ca_sum": "training.models.ca_sum:CASum",
    "dr_dsn": "training.models.dr_dsn:DRDSN",
}

_FEATURE_DIM_NAMES = ("input_size", "in_dim", "num_feature")  # as the authors call it


def build(name: str, *, feature_dim: int = 1024, **options: Any) -> torch.nn.Module:
    """Make a freshly initialised model.

    Parameters
    ----------
    name : str                a key of ``MODELS``; hyphens and capitals are accepted
    feature_dim : int         D, the size of one step's features, >= 1
    options                   the architecture's own options as its class documents them, in any case, with values as
                              the authors spell them ("none" and None are the same); ``input_size`` may repeat D

    Raises
    ------
    InputError                unknown name or option, a value out of range, or ``input_size`` other than ``feature_dim``
    """
    key = name.lower().replace("-", "_")
    if key not in MODELS:
        raise InputError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    module, _, class_name = MODELS[key].partition(":")
    model_class = getattr(import_module(module), class_name)

    chosen: dict[str, Any] = {}
    for option, value in options.items():
        if option.lower() in chosen:
            raise InputError(f"{key}: option {option.lower()} is given twice, in different capitals; give it once")
        chosen[option.lower()] = value
    for alias in _FEATURE_DIM_NAMES:
        if chosen.pop(alias, feature_dim) != feature_dim:
            raise InputError(f"{key}: {alias} and feature_dim are the same thing, but differ; {feature_dim=}")
    known = [option for option in inspect.signature(model_class).parameters if option != "feature_dim"]
    if unknown := [option for option in chosen if option not in known]:
        raise InputError(f"{key}: unknown option {', '.join(unknown)}; it has {', '.join(known)}")
    if feature_dim < 1:
        raise InputError(f"feature_dim: expected an integer >= 1, got {feature_dim!r}")
    model: torch.nn.Module = model_class(feature_dim, **chosen)
    return model


def load_reference_state_dict(model: torch.nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill ``model`` with weights in the layout the architecture's authors published.

    Parameters
    ----------
    model                     a model of this table, built with the options the weights belong to
    state_dict                the authors' key -> numpy array or torch tensor

    Raises
    ------
    InputError                a missing or unknown key, or a shape that differs; the model is then unchanged
    """
    import torch

    views: dict[str, torch.Tensor] = model.reference_views(model.state_dict())  # type: ignore[operator]
    unused: dict[str, tuple[int, ...]] = model.reference_unused()  # type: ignore[operator]
    who = type(model).__name__
    missing = [key for key in views if key not in state_dict]
    unknown = [key for key in state_dict if key not in views and key not in unused]
    if missing or unknown:
        raise InputError(
            f"state dict of another model or other options than this {who}({model.options}): "
            f"missing {_listed(missing)}; unknown {_listed(unknown)}"
        )
    values = {key: torch.tensor(value) if not torch.is_tensor(value) else value for key, value in state_dict.items()}
    shapes = {**{key: tuple(view.shape) for key, view in views.items()}, **unused}
    if wrong := [key for key, value in values.items() if tuple(value.shape) != shapes[key]]:
        told = (f"{key} expected {list(shapes[key])}, got {list(values[key].shape)}" for key in wrong)
        raise InputError(f"state dict does not fit this {who}({model.options}): {_listed(told)}")
    with torch.no_grad():
        for key, view in views.items():
            view.copy_(values[key])


def _listed(items: Iterable[str]) -> str:
    """Up to three items, then a count.

    >>> _listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    items = list(items)
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + rest if items else "nothing"
