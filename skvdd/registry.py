"""The classes that a file may name, and their objects as plain values."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

OWN = "skvdd:"  # begins the names of the library's classes
TAG, TUPLE = "skvdd class", "skvdd tuple"  # keys of objects and tuples in the header
REGISTRY: dict[str, type] = {}  # the classes that a file may name: nothing else is ever built


def register(cls: type) -> type:
    """Let files name a class, by its module and qualified name.

    Every subclass of `BasePolicy` and of `Encoder` is registered. A class of the library keeps its
    place; one of a notebook may be defined again.
    """
    name = class_name(cls)
    if name.startswith(OWN) and name in REGISTRY:
        raise TypeError(f"{name} is a class of skvdd already.")
    REGISTRY[name] = cls
    return cls


def is_registered(value: Any) -> bool:
    """Say whether a file can name the class of an object."""
    return REGISTRY.get(class_name(type(value))) is type(value)


def is_foreign(value: Any) -> bool:
    """Say whether an object is of a registered class that is not the library's."""
    return is_registered(value) and not class_name(type(value)).startswith(OWN)


def class_name(cls: type) -> str:
    """Return how a file names a class: the library's own wherever in it they are defined."""
    module = cls.__module__
    return f"{OWN if module.partition('.')[0] == 'skvdd' else module + ':'}{cls.__qualname__}"


def to_plain(value: Any) -> Any:
    """Return a value as JSON can hold it: registered objects as their class and parameters."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: to_plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return {TUPLE: [to_plain(inner) for inner in value]}
    if isinstance(value, list):
        return [to_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    if type(value).__name__ == "device":  # torch's
        return str(value)
    if is_registered(value):
        return {TAG: class_name(type(value)), **to_plain(arguments_of(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a policy file cannot hold a {type(value).__name__}: {value!r}.")


def arguments_of(value: Any) -> dict[str, Any]:
    """Return what builds an object again: the fields of a dataclass, an estimator's parameters."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value.get_params(deep=False)


def from_plain(value: Any) -> Any:
    """Undo `to_plain`."""
    if isinstance(value, list):
        return [from_plain(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if TUPLE in value:
        return tuple(from_plain(inner) for inner in value[TUPLE])
    arguments = {name: from_plain(inner) for name, inner in value.items() if name != TAG}
    if TAG not in value:
        return arguments
    built = registered(value[TAG])(**arguments)
    check = getattr(built, "check", None)
    if check is not None:
        check()
    return built


class UnknownClassError(ValueError):
    """Says that a file names a class that this process does not have."""


def registered(name: Any) -> Any:
    """Return the class of a name, or raise an `UnknownClassError`."""
    if name not in REGISTRY:
        module = str(name).partition(":")[0]
        own = str(name).startswith(OWN)
        remedy = "update skvdd" if own else f"import {module} before loading it"
        raise UnknownClassError(f"names the unknown class {name!r}: {remedy}.")
    return REGISTRY[name]
