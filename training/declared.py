"""Settings and options that a class declares, read from its source so that torch is not imported.

Importing torch takes seconds; without it, a mistake in a command is refused at once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import MODELS, unknown_options
from vsum_runtime.training.models.options import choice, flag, real, whole
from vsum_runtime.training.procedures import find_recipe, options_before_training

FEATURE_NORMS = ("auto", "none", "l2")
_PARSERS: dict[str, tuple[Callable[..., Any], bool]] = {
    "choice": (choice, False),
    "flag": (flag, False),
    "real": (real, True),
    "whole": (whole, True),
}
"""The parsers that models use for their options, and whether the third argument is the value for None."""


def check_arguments(name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse settings and options that a recipe does not have, and settings of another kind.

    Raises
    ------
    InputError
        an unknown recipe, setting, rule or option; a value of another kind or out of range
    """
    recipe = find_recipe(name)
    if recipe.chosen_options and settings:
        raise InputError(f"{name}: its weights are solved for, not iterated; it takes no {', '.join(sorted(settings))}")
    if fixed := options.keys() - options_before_training(name, options).keys():
        raise InputError(f"{name}: expected no option {', '.join(sorted(fixed))}, which training chooses by itself")
    kinds = fields("vsum_runtime.training.config", "TrainConfig")
    module, _, procedure = recipe.procedure.partition(":")
    module = f"vsum_runtime.training.procedures.{module}"
    kinds |= fields(module, default_class(module, procedure))
    del kinds["settings"]
    parsed = parse_settings(settings, kinds)
    if parsed.get("select", recipe.rules[0]) not in recipe.rules:
        raise InputError(f"select: expected one of {', '.join(recipe.rules)} for {name}, got {parsed['select']!r}")
    if parsed.get("feature_norm", "auto") not in FEATURE_NORMS:
        raise InputError(f"feature_norm: expected {', '.join(FEATURE_NORMS)}, got {parsed['feature_norm']!r}")
    module, _, model = MODELS[recipe.model or name].partition(":")
    if known := keyword_options(module, model):
        unknown_options(recipe.model or name, options, known)
    check_values(module, model, options)


def parse_settings(values: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Parse values, which may be text, to the types of their fields: name -> annotation in ``kinds``.

    Raises
    ------
    InputError
        a name that is not in ``kinds``, or a value of another kind
    """
    if unknown := values.keys() - kinds.keys():
        raise InputError(f"settings: expected some of {', '.join(sorted(kinds))}, got {', '.join(sorted(unknown))}")
    return {name: _parsed(name, value, set(kinds[name].split(" | "))) for name, value in values.items()}


def _parsed(name: str, value: Any, kinds: set[str]) -> Any:
    if "None" in kinds and (value is None or str(value).lower() == "none"):
        return None
    if "bool" in kinds:
        return flag(name, value)
    if "int" in kinds:  # whole numbers count something
        return whole(name, value, least=0 if name.endswith("seed") else 1)
    return real(name, value, least=0) if "float" in kinds else str(value)


def fields(module: str, class_name: str) -> dict[str, str]:
    """Name -> annotation of the fields of a dataclass."""
    body = _class(module, class_name).body
    annotated = (node for node in body if isinstance(node, ast.AnnAssign))
    return {node.target.id: ast.unparse(node.annotation) for node in annotated if isinstance(node.target, ast.Name)}


def default_class(module: str, procedure: str) -> str:
    """The class of a procedure's ``defaults``."""
    for node in _class(module, procedure).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "defaults" and node.value is not None:
            return ast.unparse(node.value).removesuffix("()")
    raise LookupError(f"{module}: {procedure} declares no defaults")


def keyword_options(module: str, class_name: str) -> list[str]:
    """Keyword-only arguments of a class; none where it inherits them."""
    for node in _class(module, class_name).body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return [argument.arg for argument in node.args.kwonlyargs]
    return []


def check_values(module: str, class_name: str, options: Mapping[str, Any]) -> None:
    """Check options as building the model would, as far as bounds and choices are literals in the source.

    Raises
    ------
    InputError
        what building the model would raise
    """
    for node in ast.walk(_class(module, class_name)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in _PARSERS:
            continue
        option = str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else ""
        if option not in options or str(options[option]).lower() == "none":
            continue
        parse, takes_default = _PARSERS[node.func.id]
        try:
            arguments = [] if takes_default else [ast.literal_eval(argument) for argument in node.args[2:]]
            bounds = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        except ValueError:  # it depends on other options
            continue
        parse(option, options[option], *arguments, **bounds)


def _class(module: str, name: str) -> ast.ClassDef:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"no module {module}")
    with open(spec.origin, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
