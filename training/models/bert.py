"""BERT, the text encoder of the multimodal models, from the ``transformers`` library (extra ``text``).

The library asks at import whether a package called ``kernels`` is there, meaning one of that name on the package index,
and imports names from it if its version fits. Ours would be found in its place; it is hidden while the library loads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vsum_runtime.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import BertConfig, BertModel

CLS, SEP, PAD = 101, 102, 0
"""Ids of the special tokens in the vocabulary of BERT base uncased."""

RANDOM = "random"
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
"""What ``text_encoder="small"`` changes in the configuration of BERT base uncased."""

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)


def bert(encoder: str | Mapping[str, Any] | None) -> tuple[BertModel, dict[str, Any]]:
    """Make a BERT with its pooler, in float32.

    Parameters
    ----------
    encoder                   None or "base": the architecture of BERT base uncased, randomly initialised;
                              "small": the same class with 2 layers of width 128, randomly initialised;
                              another string: a folder (or a name on the library's hub) with a configuration and
                              ``model.safetensors``, both loaded; a mapping that this function returned: that
                              architecture, randomly initialised, for weights that come from a checkpoint

    Returns
    -------
    the model, and a mapping that makes it again: fields of its configuration, and ``weights``, where those come from
    ("random" or the string that was given)

    Raises
    ------
    InputError
        transformers is not installed, the folder is none, or it lacks a weight
    """
    config_class, model_class = _library()
    if encoder is None or isinstance(encoder, Mapping) or encoder in ("base", "small"):
        fields = dict(encoder) if isinstance(encoder, Mapping) else dict(SMALL if encoder == "small" else {})
        weights = fields.pop("weights", RANDOM)
        if unknown := [name for name in fields if name not in _FIELDS]:
            raise InputError(f"text_encoder: unknown field {', '.join(unknown)}; it has weights, {', '.join(_FIELDS)}")
        model = model_class(config_class(**fields))
    else:
        weights = encoder
        try:
            loaded: Any = model_class.from_pretrained(encoder, use_safetensors=True, output_loading_info=True)
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"text_encoder: no BERT could be loaded from {encoder!r} ({reason}); give a folder that holds "
                "config.json and model.safetensors, or small or base for a randomly initialised one"
            ) from None
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise InputError(f"text_encoder: {encoder!r} is no BERT with a pooler, it lacks {', '.join(missing[:3])}")
        model = model.float()
    return model, {"weights": weights, **{name: getattr(model.config, name) for name in _FIELDS}}


def _library() -> tuple[type[BertConfig], type[BertModel]]:
    try:
        with _hidden("kernels"):
            from transformers import BertConfig, BertModel
    except ImportError as error:
        raise InputError(f'text needs the library transformers ({error}): pip install "vsum-runtime[text]"') from None
    return BertConfig, BertModel


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports inside the block find no such package. Not for use beside threads that import it."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment] # what the import system reads as "known to be absent"
    try:
        yield
    finally:
        if before is None:
            del sys.modules[package]
        else:
            sys.modules[package] = before
