"""The parts of scikit-learn that are not yet promised to stay: one place to mend if they move."""

from typing import Any

from numpy.typing import NDArray
from sklearn.base import _fit_context as fit_context
from sklearn.callback import CallbackContext, CallbackSupportMixin, ProgressBar, with_callbacks
from sklearn.callback._callback_context import get_context_path
from sklearn.preprocessing import StandardScaler
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
    "fit_context",
    "fixed_scaler",
    "get_context_path",
    "is_fitted",
    "validate_data",
    "with_callbacks",
]


def callbacks_of(estimator: Any) -> list[Any]:
    """Return the callbacks that an estimator was given by `set_callbacks`."""
    return list(getattr(estimator, "_skl_callbacks", []))


def fixed_scaler(mean: NDArray, scale: NDArray) -> StandardScaler:
    """Return a fitted scaler of given units."""
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_, scaler.var_ = mean.copy(), scale, scale**2
    scaler.n_features_in_, scaler.n_samples_seen_ = len(mean), 1
    return scaler
