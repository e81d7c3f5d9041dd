"""The run-time type checker of the test run (see `--jaxtyping-packages` in pyproject.toml)."""

import typing
from collections.abc import Callable
from typing import Any

import beartype
from numpy.typing import ArrayLike

# As static checkers do: a whole number is welcome where a float is asked for.
_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_ARRAY_LIKE = typing.get_args(ArrayLike)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    annotations = getattr(function, "__annotations__", {})
    # beartype knows `Self` only where it decorates a whole class; jaxtyping hands it one method at a time
    if typing.Self in annotations.values():
        return function
    for name, hint in annotations.items():
        # NumPy asks for `__reversed__`, which a tuple has for static checkers only
        if all(part in typing.get_args(hint) for part in _ARRAY_LIKE):
            annotations[name] = object
    return _beartype(function)
