"""What the infos of an episode say: success and behavior, by one score of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skvdd.envs import Score
from skvdd.envs.spec import Behavior


class Verdict:
    """Success and behavior of an episode, as far as its infos have told them.

    Parameters
    ----------
    score : Score
        Where they are told, and which word counts.

    Examples
    --------
    >>> from skvdd.envs import Score
    >>> from skvdd.envs.verdicts import Verdict
    >>> verdict = Verdict(Score(behaviors={"left": "l", "right": "r"}, when="any"))
    >>> for info in {"success": False}, {"success": True, "behavior": "left"}, {"success": 0.0}:
    ...     verdict.hear(info)
    >>> verdict.success, verdict.behavior
    (True, 'left')
    """

    def __init__(self, score: Score) -> None:
        self.score = score
        self.success: bool | None = None  # until an info has told
        self.behavior: Behavior = None

    def hear(self, info: Mapping[str, Any]) -> None:
        """Take in what the info of a step tells.

        The behavior is the last one that is told; where a success at any step counts, that of the
        first success.

        Parameters
        ----------
        info : mapping
            As `step` of the environment returns it.

        Raises
        ------
        ValueError
            If it tells a success that is neither true nor false, or a behavior that is no text,
            integer or None.
        """
        score = self.score
        settled = score.when == "any" and self.success is True
        if score.behavior_key in info and not (settled and self.behavior is not None):
            self.behavior = _plain(info[score.behavior_key], score)
        if score.success_key in info:
            told = _truth(score.success_key, info[score.success_key])
            self.success = told or settled


def _truth(key: str, value: Any) -> bool:
    """Return a truth value of Python; NumPy's, and 0 and 1 of any type, are meant as such."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise ValueError(f"{key!r} must be true or false, got {value!r}")
    return bool(array.item())


def _plain(told: Any, score: Score) -> Behavior:
    """Return a behavior as Python has it; NumPy's texts, and whole numbers, are meant as such."""
    one = isinstance(told, np.generic | np.ndarray) and told.size == 1
    plain = told.item() if one else told
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if plain is None or isinstance(plain, str | int):
        return plain
    if not score.behaviors:  # something else that has this name
        return None
    raise ValueError(f"{score.behavior_key!r} must be a text, an integer or None, got {told!r}")
