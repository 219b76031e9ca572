"""Where the rollouts of an evaluation start."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvdd.envs import EnvPool, TaskSpec
from skvdd.envs.task import SPLITS
from skvdd.rollouts import Start


@dataclass(frozen=True, eq=False)
class Contexts:
    """The initial states that rollouts share out.

    Parameters
    ----------
    split : str or None
        The list that their numbers are of; None for a table of initial states.
    starts : sequence of Start
        One for each.
    table : ndarray of shape (m, k) or None, default=None
        The table.
    """

    split: str | None
    starts: Sequence[Start]
    table: NDArray[np.float64] | None = None


def of_validation(contexts: Any, task: TaskSpec) -> Any:
    """Return an argument ``contexts`` that means the validation list where it names none."""
    if contexts is None:
        return None if task.n_contexts is None else "validation"
    contexts = _kept(contexts)  # a scorer is called more than once
    if not task.is_registered:  # it may know no lists
        return contexts
    if _is_table(contexts) or isinstance(contexts, str) or _is_pair(contexts):
        return contexts
    return "validation", contexts


def choose_contexts(contexts: Any, task: TaskSpec, n_episodes: int | None) -> Contexts | None:
    """Return the contexts that an argument ``contexts`` means; None where no task has any.

    Parameters
    ----------
    contexts : None, int, sequence of int, str, pair or array-like of shape (m, k)
        As in `evaluate_policy`.
    task : TaskSpec
        What is evaluated.
    n_episodes : int or None
        Rollouts: as many contexts as the task says get two of them at least.

    Raises
    ------
    ValueError
        If they are not what they can be, or the task has no contexts.
    """
    if contexts is None and task.n_contexts is None:
        return None
    if task.n_contexts is None and task.is_registered:
        raise ValueError(
            f"contexts must be None for {task.name}, whose episodes all start alike, got "
            f"{contexts!r}. Choose with one random_state and report with another."
        )
    contexts = _kept(contexts)
    if _is_table(contexts):
        table = _table(contexts)
        _check_episodes(n_episodes, len(table))
        starts = [Start(index, {"context": row}) for index, row in enumerate(table)]
        return Contexts(None, starts, table)
    split, numbers = _split_and_numbers(contexts)
    if numbers is None:
        numbers = range(_default_number(task, n_episodes))
    _check_episodes(n_episodes, len(numbers))
    options: dict[str, Any] = {} if split == "test" else {"split": split}
    return Contexts(split, [Start(int(i), {"context": int(i), **options}) for i in numbers])


def _kept(contexts: Any) -> Any:
    """Return contexts that can be gone through again, and have an order."""
    if _is_pair(contexts):
        return contexts[0], _kept(contexts[1])
    return list(contexts) if isinstance(contexts, Set | Iterator) else contexts


def warn_if_ignored(chosen: Contexts, pool: EnvPool) -> None:
    """Warn where an environment starts alike whatever its context, or its list, is.

    Parameters
    ----------
    chosen : Contexts
        What the rollouts will start in.
    pool : EnvPool
        At least one environment.
    """

    def first_observation(options: dict[str, Any]) -> Any:
        return np.array(pool.reset([0], [0], [options])[0][0])

    starts, table = chosen.starts, chosen.table
    first = first_observation(starts[0].options)
    differ = len(starts) > 1 and (table is None or not np.array_equal(table[0], table[1]))
    if differ and np.array_equal(first, first_observation(starts[1].options)):
        warnings.warn(
            f"{pool.env_id} starts alike in two contexts. Does its reset look at "
            "options['context']?",
            stacklevel=3,
        )
    elif "split" in starts[0].options:
        of_test = {"context": starts[0].context}
        if np.array_equal(first, first_observation(of_test)):
            warnings.warn(
                f"{pool.env_id} starts alike in the {chosen.split} and the test list, so that what "
                "is chosen is also what is reported. Does its reset look at options['split']?",
                stacklevel=3,
            )


def _split_and_numbers(contexts: Any) -> tuple[str, Sequence[int] | None]:
    """Return which list is meant, and which numbers of it; None for as many as the task says."""
    split = "test"
    if _is_pair(contexts):
        split, contexts = contexts
    elif isinstance(contexts, str):
        split, contexts = contexts, None
    if split not in SPLITS:
        raise ValueError(f"contexts must name one of the lists {SPLITS}, got {split!r}.")
    if contexts is None:
        return split, None
    if _is_number(contexts):
        if contexts < 1:
            raise ValueError(f"contexts must be at least 1, got {contexts}.")
        return split, range(int(contexts))
    numbers = list(contexts) if np.iterable(contexts) else [contexts]
    if not numbers or not all(_is_number(number) and number >= 0 for number in numbers):
        raise ValueError(
            "contexts must be a number, numbers from 0, a list of the task "
            f"({', '.join(SPLITS)}), a pair of both, or a table with a row for each; got "
            f"{contexts!r}."
        )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"contexts must be different numbers, got {numbers}.")
    return split, numbers


def _check_episodes(n_episodes: int | None, n_contexts: int) -> None:
    """Refuse fewer rollouts than contexts."""
    if n_episodes is not None and n_episodes < n_contexts:
        raise ValueError(
            f"n_episodes must be at least one for each of the {n_contexts} contexts, got "
            f"{n_episodes}."
        )


def _default_number(task: TaskSpec, n_episodes: int | None) -> int:
    if task.n_contexts is None:
        raise ValueError(
            f"contexts must say how many, since {task.env_id} is no registered task, got a list "
            "alone. skvdd.envs.register_task makes it one."
        )
    return task.n_contexts if n_episodes is None else min(task.n_contexts, max(1, n_episodes // 2))


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def _is_table(contexts: Any) -> bool:
    if contexts is None or isinstance(contexts, str | range) or _is_number(contexts):
        return False
    return not _is_pair(contexts) and np.ndim(_as_array(contexts)) != 1


def _is_pair(contexts: Any) -> bool:
    return isinstance(contexts, tuple) and len(contexts) == 2 and isinstance(contexts[0], str)


def _as_array(contexts: Any) -> NDArray[Any]:
    try:
        return np.asarray(contexts)
    except ValueError as error:
        raise ValueError(
            f"contexts must be numbers, or a table with rows of equal length, got {contexts!r}."
        ) from error


def _table(contexts: Any) -> NDArray[np.float64]:
    table = np.asarray(_as_array(contexts), dtype=float)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(
            "contexts must be a number, numbers, or a table with one row for each of them; got "
            f"shape {table.shape}."
        )
    return table
