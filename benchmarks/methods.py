"""The methods: the rows of tables, what of each is searched for, and methods from elsewhere.

Every method has the library's defaults, but for the preset of a task, and what a search chose: that
comes from ``tuned.json`` among the records of a task (``python -m benchmarks search``).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.presets import Parameters
from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    GaussianMoEPolicy,
    IMCPolicy,
    VDDDistiller,
)


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Parameters
    ----------
    name : str
        As the paper calls it.
    make : callable
        Builds the unfitted estimator.
    teacher : str or None, default=None
        The method that is distilled.
    trained_as : str or None, default=None
        The method whose policy this one is, under other settings.
    settings : dict, default={}
        Those settings, ``n_steps`` or ``sampler``.
    candidates : tuple of dict, default=()
        Parameters that a search compares; the first is the library's default.
    is_foreign : bool, default=False
        Whether it is not of this library.
    """

    name: str
    make: Callable[..., Any]
    teacher: str | None = None
    trained_as: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = ()
    is_foreign: bool = False


# Candidates of each method that the paper searched for: the library's default first, the paper's
# own choice for Avoiding, and points of its grid.
VDD_CANDIDATES = (
    {},
    {"noise_min": 0.2, "noise_max": 0.5},  # the paper's
    {"n_experts": 16},
)
CD_CANDIDATES = (
    {},
    {"n_levels": 2, "target_decay": 0.9999},  # the paper's
    {"n_levels": 40},
)
CTM_CANDIDATES = (
    {},
    {"n_levels": 20, "target_decay": 0.9999},  # the paper's
    {"n_levels": 10},
)
EM_CANDIDATES = (
    {},
    {"n_experts": 20},  # the paper's
    {"scale_floor": 0.05},
)
IMC_CANDIDATES = (
    {},  # the paper's
    {"eta": 5.0},
    {"n_experts": 20},
)
METHODS = {
    method.name: method
    for method in [
        Method("VP", partial(DiffusionPolicy, "vp")),
        Method("VE", partial(DiffusionPolicy, "ve")),
        Method("VP-1", DiffusionPolicy, trained_as="VP", settings={"n_steps": 1}),
        Method("VE-1", DiffusionPolicy, trained_as="VE", settings={"n_steps": 1}),
        # The transformer runs whole for each noisy action: batches of 64 bring it to minutes.
        Method("GPT", partial(DiffusionPolicy, "ve", "gpt", batch_size=64)),
        Method("VDD-GPT", VDDDistiller, "GPT"),
        Method("CD-VE", ConsistencyDistiller, "VE", candidates=CD_CANDIDATES),
        Method("CTM-VE", ConsistencyTrajectoryDistiller, "VE", candidates=CTM_CANDIDATES),
        Method("VDD-VP", VDDDistiller, "VP", candidates=VDD_CANDIDATES),
        Method("VDD-VE", VDDDistiller, "VE", candidates=VDD_CANDIDATES),
        Method("EM", GaussianMoEPolicy, candidates=EM_CANDIDATES),
        Method("IMC", IMCPolicy, candidates=IMC_CANDIDATES),
    ]
}
SHORT = {"vdd": "VDD-VE", "cd": "CD-VE", "ctm": "CTM-VE"}  # in the command line


def find_method(name: str) -> Method:
    """Return the method of a name, or the class of ``"module:Class"`` as one."""
    if ":" in name:
        return foreign_method(name)
    known = {method.lower(): method for method in METHODS}
    wanted = SHORT.get(name.lower(), known.get(name.lower()))
    if wanted is None:
        raise ValueError(
            f"method must be one of {', '.join([*SHORT, *METHODS])}, or module:Class, got {name!r}."
        )
    return METHODS[wanted]


def foreign_method(reference: str) -> Method:
    """Return a class that need have no more than ``fit(X, y)`` and ``act(X, random_state=)``."""
    module, _, name = reference.partition(":")
    cls = getattr(imported(module), name, None)
    if cls is None:
        raise ValueError(f"{reference} must be a class, the module {module} has no {name!r}.")
    lacking = [method for method in ("fit", "act") if not hasattr(cls, method)]
    if lacking:
        raise TypeError(f"{reference} must have fit and act, it has no {' and no '.join(lacking)}.")
    try:
        inspect.signature(cls)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{reference} must be a class whose parameters Python can tell ({error})."
        ) from error
    return Method(name, cls, is_foreign=True)


def imported(name: str) -> ModuleType:
    """Return a module; raise a ValueError that says why it cannot be imported."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} cannot be imported ({error}). A module of your own is found in the working "
            "directory, or in a folder that PYTHONPATH names."
        ) from error


def taken(make: Callable[..., Any], parameters: Parameters) -> Parameters:
    """Return those of some parameters that a class, or a partial of one, takes."""
    known = inspect.signature(make).parameters
    return {name: value for name, value in parameters.items() if name in known}


def read_tuned(folder: Path) -> dict[str, Parameters]:
    """Return what the search chose for each method; nothing before there was one."""
    path = folder / "tuned.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def setting_name(method: str, parameters: Parameters) -> str:
    """Return what a table calls a method with some parameters."""
    setting = " ".join(
        f"{name}={value:g}" if isinstance(value, int | float) else f"{name}={value}"
        for name, value in parameters.items()
    )
    return f"{method} {setting}".rstrip()
