"""The model table: every architecture this project knows, by name.

All models are called alike: ``model(features, lengths)`` takes features float32 [B, T, D] and lengths int64 [B] and
returns scores float32 [B, T], or proposals. What stands in the padding (steps ``t >= lengths[b]``) never changes a
valid output, padded outputs are 0, and any T >= 1 works. A model also has

- ``feature_dim`` (D) and ``options``: ``build(name, feature_dim=model.feature_dim, **model.options)`` makes it again;
- ``card`` (``training.models.card``): task, paper and licence, for ``vsum-models``;
- ``output``: "scores"; or "proposals", and then ``output_axes`` (name -> axes of each output) and ``decoder``
  (``runtime.proposals.Decoder``, what turns them into scores);
- ``reference_views(tensors)``: tensors by our parameter names -> views of them by the authors' names;
- ``reference_unused()``: how the authors' other names begin -> the only value such an entry may have, or None for any;
- ``reference_rewritten(state_dict)``, where needed: the authors' entries -> those that the two above speak of.

To add a model: (1) write ``training/models/<name>.py`` with one class that meets the list above, its options
keyword-only arguments in lower case; (2) add its line to ``MODELS``; (3) add a test against the authors' outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.options import whole

if TYPE_CHECKING:
    import torch

MODELS = {
    "ac_sum_gan": "vsum_runtime.training.models.ac_sum_gan:ACSUMGAN",
    "csta": "vsum_runtime.training.models.csta:CSTA",
    "fcsn": "vsum_runtime.training.models.fcsn:FCSN",
    "pgl_sum": "vsum_runtime.training.models.pgl_sum:PGLSum",
    "sspvs": "vsum_runtime.training.models.sspvs:SSPVS",
    "vasnet": "vsum_runtime.training.models.vasnet:VASNet",
    "vslud": "vsum_runtime.training.models.vslud:VSLUD",
    "dsnet_ab": "vsum_runtime.training.models.dsnet:DSNetAB",
    "dsnet_af": "vsum_runtime.training.models.dsnet:DSNetAF",
    "ca_sum": "vsum_runtime.training.models.ca_sum:CASum",
    "dr_dsn": "vsum_runtime.training.models.dr_dsn:DRDSN",
    "nonlocal_ridge": "vsum_runtime.training.models.nonlocal_ridge:NonLocalRidge",
}

_REMARKS = ("class", "note", "aliases", "instance_norm_single_position")  # of published configurations; no options
_FEATURE_DIM_NAMES = ("input_size", "in_dim", "num_feature")  # as the authors call it


def build(name: str, *, feature_dim: int = 1024, **options: Any) -> torch.nn.Module:
    """Make a freshly initialised model.

    Parameters
    ----------
    name : str
        a key of ``MODELS``; hyphens and capitals are accepted
    feature_dim : int
        D, the size of one step's features, >= 1
    options                   the architecture's own options as its class documents them, in any case, with values as
                              the authors spell them ("none" and None are the same); ``input_size`` may repeat D

    Raises
    ------
    InputError
        unknown name or option, a value out of range, or ``input_size`` other than ``feature_dim``
    """
    key = canonical(name)
    if key not in MODELS:
        raise InputError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    module, _, class_name = MODELS[key].partition(":")
    model_class = getattr(import_module(module), class_name)

    chosen = _in_lower_case(key, options)
    feature_dim = whole("feature_dim", feature_dim, least=1)
    for alias in _FEATURE_DIM_NAMES:
        if (size := whole(alias, chosen.pop(alias, feature_dim), least=1)) != feature_dim:
            raise InputError(f"{key}: {alias} is another name of feature_dim, got {alias}={size}, {feature_dim=}")
    chosen = {option: value for option, value in chosen.items() if option not in _REMARKS}
    unknown_options(key, chosen, [name for name in inspect.signature(model_class).parameters if name != "feature_dim"])
    model: torch.nn.Module = model_class(feature_dim, **chosen)
    return model


def canonical(name: str) -> str:
    """A name of this table however it is spelt: ``dr_dsn`` for ``DR-DSN``."""
    return str(name).lower().replace("-", "_")


def unknown_options(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse options, in any case, that a model does not have."""
    also = (*known, *_FEATURE_DIM_NAMES, *_REMARKS)
    if unknown := [option for option in _in_lower_case(name, options) if option not in also]:
        raise InputError(f"{name}: unknown option {', '.join(unknown)}; it has {', '.join(known)}")


def _in_lower_case(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for option, value in options.items():
        if option.lower() in chosen:
            raise InputError(f"{name}: option {option.lower()} is given twice, in different capitals; give it once")
        chosen[option.lower()] = value
    return chosen


def load_reference_state_dict(model: torch.nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill ``model`` with weights in the layout the architecture's authors published.

    Parameters
    ----------
    model                     a model of this table, built with the options the weights belong to
    state_dict                the authors' key -> numpy array or torch tensor

    Raises
    ------
    InputError
        a missing or unknown key, or a shape that differs; the model is then unchanged
    """
    import torch

    state_dict = getattr(model, "reference_rewritten", dict)(state_dict)
    views: dict[str, torch.Tensor] = model.reference_views(model.state_dict())  # type: ignore[operator]
    unused: dict[str, torch.Tensor | None] = model.reference_unused()  # type: ignore[operator]
    who = f"this {type(model).__name__} of {model.options}"
    values = {key: value if torch.is_tensor(value) else torch.tensor(value) for key, value in state_dict.items()}
    missing = [key for key in views if key not in values]
    unknown = [key for key in values if key not in views and not key.startswith(tuple(unused))]
    if missing or unknown:
        raise InputError(
            f"state dict of another model or other options than {who}: "
            f"missing {_listed(missing)}; unknown {_listed(unknown)}"
        )
    if wrong := [key for key, view in views.items() if values[key].shape != view.shape]:
        mismatches = (f"{key} expected {list(views[key].shape)}, got {list(values[key].shape)}" for key in wrong)
        raise InputError(f"state dict does not fit {who}: {_listed(mismatches)}")
    for key, only in unused.items():
        if only is not None and key in values and not _equals(values[key], only):
            raise InputError(f"state dict of other options than {who}: {key} is fixed there, and has other values here")
    with torch.no_grad():
        for key, view in views.items():
            view.copy_(values[key])


def _equals(value: torch.Tensor, fixed: torch.Tensor) -> bool:
    """Up to rounding, and to repetition along an axis."""
    try:
        return value.allclose(fixed.to(value), atol=1e-2)
    except RuntimeError:  # shapes that cannot be the same
        return False


def _listed(items: Iterable[str]) -> str:
    """Up to three items, then a count.

    >>> _listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    items = list(items)
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + rest if items else "nothing"
