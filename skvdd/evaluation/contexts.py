"""Where the rollouts of an evaluation start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from skvdd.envs import TaskSpec
from skvdd.rollouts import Start

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Contexts:
    """The initial states that rollouts share out.

    Parameters
    ----------
    split : str or None
        The list that their numbers are of; None for a table of initial states.
    starts : sequence of Start
        One for each.
    """

    split: str | None
    starts: Sequence[Start]


def of_validation(contexts: Any, task: TaskSpec) -> Any:
    """Return an argument ``contexts`` that means the validation list where it names none."""
    if contexts is None:
        return None if task.n_contexts is None else "validation"
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
    if _is_table(contexts):
        return Contexts(None, _table(contexts))
    split, numbers = _split_and_numbers(contexts)
    if numbers is None:
        numbers = range(_default_number(task, n_episodes))
    options: dict[str, Any] = {} if split == "test" else {"split": split}
    return Contexts(split, [Start(int(i), {"context": int(i), **options}) for i in numbers])


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
    return not _is_pair(contexts) and np.asarray(contexts).ndim != 1


def _is_pair(contexts: Any) -> bool:
    return isinstance(contexts, tuple) and len(contexts) == 2 and isinstance(contexts[0], str)


def _table(contexts: Any) -> list[Start]:
    table = np.asarray(contexts, dtype=float)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(
            "contexts must be a number, numbers, or a table with one row for each of them; got "
            f"shape {table.shape}."
        )
    return [Start(index, {"context": row}) for index, row in enumerate(table)]
