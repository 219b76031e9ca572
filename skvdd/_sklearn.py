"""The parts of scikit-learn that are not promised to stay: one place to mend if they move."""

import sys
from typing import Any

from sklearn.base import _fit_context as fit_context
from sklearn.callback import CallbackContext, CallbackSupportMixin, ProgressBar, with_callbacks
from sklearn.callback._callback_context import get_context_path
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import validation
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.validation import _is_fitted as is_fitted
from sklearn.utils.validation import validate_data

__all__ = [
    "CallbackContext",
    "CallbackSupportMixin",
    "Interval",
    "InvalidParameterError",
    "ProgressBar",
    "StrOptions",
    "callbacks_of",
    "enclosing_pipeline",
    "fit_context",
    "get_context_path",
    "is_fitted",
    "let_searches_pass_on_teachers",
    "validate_data",
    "with_callbacks",
]


def callbacks_of(estimator: Any) -> list[Any]:
    """Return the callbacks that an estimator was given by `set_callbacks`."""
    return list(getattr(estimator, "_skl_callbacks", []))


def enclosing_pipeline(estimator: Any) -> Any:
    """Return the pipeline whose last step is being fitted, or None.

    scikit-learn gives a step no reference to its pipeline, so it is looked up on the call stack,
    whichever search or meta-estimator is around it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Pipeline) and owner.steps[-1][1] is estimator:
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def let_searches_pass_on_teachers() -> None:
    """Let ``GridSearchCV.fit(X, y, teacher=...)`` take pipelines and frozen estimators.

    Searches split fit parameters that have a length of one entry a row. scikit-learn asks a
    pipeline, too, how many rows it has, which it refuses to say. Here estimators do not count as
    arrays, in scikit-learn's own test for them.
    """
    original = validation._is_arraylike
    if getattr(original, "of_skvdd", False):
        return

    def is_arraylike(x: Any) -> bool:
        return not isinstance(x, Pipeline | FrozenEstimator) and original(x)

    is_arraylike.of_skvdd = True  # type: ignore[attr-defined]
    validation._is_arraylike = is_arraylike
