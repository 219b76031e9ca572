"""What a task is: how it is judged, measured, demonstrated and seen, in one place for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import gymnasium

Behavior = str | int | None
# Actions in an episode of an environment that has no limit, unless somebody sets one.
LONGEST = 10_000


@dataclass(frozen=True)
class Score:
    """One way to judge the rollouts of a task.

    Parameters
    ----------
    name : str, default="success"
        What reports call it.
    behaviors : mapping of str or int to str, default={}
        The behaviors that solve the task, as the infos tell them, and their names. Their number is
        the base of the entropy. Empty where behaviors are not told apart.
    skips_unsolved : bool, default=False
        Whether contexts without a success are left out of D3IL's entropy; otherwise they count as
        zero.
    success_key, behavior_key : str, default="success", "behavior"
        Where an info tells the two.
    when : {"last", "any"}, default="last"
        Whether the last info that tells ``success_key`` decides, or a success at any step counts.

    Examples
    --------
    >>> from skvdd.envs import Score
    >>> Score(behaviors={0: "inside", 1: "outside"}).n_behaviors
    2
    """

    name: str = "success"
    behaviors: Mapping[str | int, str] = field(default_factory=dict)
    skips_unsolved: bool = False
    success_key: str = "success"
    behavior_key: str = "behavior"
    when: Literal["last", "any"] = "last"

    def __post_init__(self) -> None:
        """Refuse what could not be measured."""
        if not isinstance(self.behaviors, Mapping):
            raise TypeError(
                "behaviors must be a mapping of behaviors to names, got "
                f"{type(self.behaviors).__name__}."
            )
        if len(self.behaviors) == 1:
            raise ValueError("behaviors must be at least two, or none, got one.")
        if self.when not in ("last", "any"):
            raise ValueError(f"when must be 'last' or 'any', got {self.when!r}.")

    @property
    def n_behaviors(self) -> int | None:
        """Number of behaviors that solve the task; None where they are not told apart."""
        return len(self.behaviors) or None


def success_rate(evaluation: Any) -> float:
    """Select by the success rate alone.

    Parameters
    ----------
    evaluation : Evaluation
        What `~skvdd.evaluation.evaluate_policy` found.

    Returns
    -------
    float
        Greater is better.
    """
    return float(evaluation.success_rate)


@dataclass(frozen=True)
class TaskSpec:
    """All that the rest of the library looks up about a task.

    `register_task` makes it known: `load_demonstrations` then records its demonstrations,
    `evaluate_policy` measures its scores in its contexts, displays name its behaviors, and the
    benchmarks run it.

    Parameters
    ----------
    name : str
        What the task is called: ``load_demonstrations(name)``, ``evaluate_policy(policy, name)``.
    env_id : str
        Id of its Gymnasium environment.
    entry_point : str, callable or None, default=None
        What makes the environment; `register_task` then registers it with Gymnasium. None where
        that was done elsewhere.
    time_limit : int or None, default=None
        Actions in an episode at most; needs ``entry_point``.
    scores : tuple of Score, default=(Score(),)
        How rollouts are judged; the first is the task's own.
    n_contexts : int or None, default=None
        Contexts of an evaluation. The environment then takes
        ``reset(options={"context": i, "split": "test"})`` with the splits ``"train"``,
        ``"validation"`` and ``"test"``, as every `~skvdd.envs.task.Task` does. None where every
        episode starts alike.
    n_rollouts : int, default=16
        Rollouts in each context; in all where there are none.
    selection : callable
        ``selection(evaluation)`` is the number by which models of this task are selected, greater
        is better; by default the success rate.
    headline : {"success_rate", "mean_return"}, default="success_rate"
        What tables call success: in some tasks the mean return, which counts partial successes.
    demonstrators : mapping of str to Demonstrator or str, default={}
        Who records demonstrations, by the name of the set; ``"module:attribute"`` is imported on
        first use. A set that has the name of the task is its main one.
    features : callable, str or None, default=None
        ``features(states)``, or ``features(states, goals)`` where there are goals, for
        `~skvdd.datasets.features.task_features`.
    goal_dim : int, default=0
        Numbers of the goal that the info of each reset tells; 0 for none.
    states, actions : tuple of str, default=()
        Names of the columns.
    metadata : mapping, default={}
        What else recordings say: units, control period in seconds.

    Examples
    --------
    >>> from skvdd.envs import get_task
    >>> task = get_task("pushing")
    >>> task.env_id, task.n_contexts, task.score.n_behaviors
    ('skvdd/Pushing-v0', 30, 4)
    >>> task.behavior_name(2)
    'rg-gr'
    """

    name: str
    env_id: str
    entry_point: str | Callable[..., Any] | None = None
    time_limit: int | None = None
    scores: tuple[Score, ...] = (Score(),)
    n_contexts: int | None = None
    n_rollouts: int = 16
    selection: Callable[[Any], float] = success_rate
    headline: Literal["success_rate", "mean_return"] = "success_rate"
    demonstrators: Mapping[str, Any] = field(default_factory=dict)
    features: Callable[..., Any] | str | None = None
    goal_dim: int = 0
    states: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could not be looked up."""
        scores: object = self.scores
        if not isinstance(scores, tuple) or not all(isinstance(s, Score) for s in scores):
            raise TypeError(f"scores of {self.name!r} must be a tuple of Score, got {self.scores}.")
        if not self.scores:
            raise ValueError(f"scores of {self.name!r} must be at least one, got none.")
        names = [score.name for score in self.scores]
        if len(set(names)) < len(names):
            raise ValueError(f"scores of {self.name!r} must have different names, got {names}.")
        for what in ("n_contexts", "n_rollouts"):
            number = getattr(self, what)
            if number is None and what == "n_contexts":
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"{what} of {self.name!r} must be an integer of at least 1, got {number!r}."
                )
        if self.time_limit is not None and self.entry_point is None:
            raise ValueError(f"time_limit of {self.name!r} needs entry_point, got None.")

    @property
    def score(self) -> Score:
        """The task's own score."""
        return self.scores[0]

    @property
    def is_registered(self) -> bool:
        """Whether `register_task` made it known; not of an environment that has no spec."""
        return self.name in _TASKS

    @property
    def n_episodes(self) -> int:
        """Rollouts of an evaluation."""
        return self.n_rollouts * (self.n_contexts or 1)

    def behavior_name(self, behavior: Behavior) -> str:
        """Return the name of a behavior.

        Parameters
        ----------
        behavior : str, int or None
            As infos tell it.

        Returns
        -------
        str
            The behavior itself, as a text, where it has no name.
        """
        for score in self.scores:
            if behavior in score.behaviors:
                return score.behaviors[behavior]  # type: ignore[index]
        return str(behavior)

    def demonstrator(self, set_name: str | None = None) -> Any:
        """Return the `~skvdd.datasets.experts.recording.Demonstrator` of a set.

        Parameters
        ----------
        set_name : str or None, default=None
            Which set; None is the main one.

        Returns
        -------
        Demonstrator
            Imported on first use.

        Raises
        ------
        ValueError
            If nobody records this set.
        """
        wanted = self.name if set_name is None else set_name
        if wanted not in self.demonstrators:
            known = ", ".join(map(repr, self.demonstrators)) or "none"
            raise ValueError(f"set_name must be one of {known}, got {wanted!r}.")
        return imported(self.demonstrators[wanted])


def imported(reference: Any) -> Any:
    """Return what ``"module:attribute"`` names; anything but a text as it is."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


# ---------------------------------------------------------------------------------------
# The tasks that are known
# ---------------------------------------------------------------------------------------

_TASKS: dict[str, TaskSpec] = {}  # by name


def register_task(task: TaskSpec) -> TaskSpec:
    """Make a task known; one of the same name is replaced.

    Parameters
    ----------
    task : TaskSpec
        The task.

    Returns
    -------
    TaskSpec
        The same.

    Raises
    ------
    ValueError
        If another task has the same environment, or a set of demonstrations of the same name.

    Examples
    --------
    Behaviors of an environment that is registered already:

    >>> from skvdd.envs import Score, TaskSpec, get_task, register_task
    >>> balance = TaskSpec(
    ...     "balance", "CartPole-v1", scores=(Score(behaviors={"l": "left", "r": "right"}),)
    ... )
    >>> register_task(balance).n_episodes
    16
    >>> get_task("CartPole-v1").name
    'balance'
    """
    for other in _TASKS.values():
        if other.name == task.name:
            continue
        if other.env_id == task.env_id:
            raise ValueError(f"env_id must be of one task, {task.env_id!r} is of {other.name!r}.")
        shared = sorted({*other.demonstrators, other.name} & {*task.demonstrators, task.name})
        if shared:
            raise ValueError(f"{shared[0]!r} must name one set, it is one of {other.name!r}.")
    if task.entry_point is not None:
        gymnasium.register(
            task.env_id, entry_point=task.entry_point, max_episode_steps=task.time_limit
        )
    _TASKS[task.name] = task
    return task


def task_names() -> tuple[str, ...]:
    """Return the names of all registered tasks.

    Returns
    -------
    tuple of str
        In the order in which they were registered.

    Examples
    --------
    >>> from skvdd.envs import task_names
    >>> "pushing" in task_names()
    True
    """
    return tuple(_TASKS)


def find_task(name: str) -> TaskSpec | None:
    """Return the task of a name, an environment id or a set of demonstrations; None without.

    Parameters
    ----------
    name : str
        One of the three.

    Returns
    -------
    TaskSpec or None
        The task.

    Examples
    --------
    >>> from skvdd.envs import find_task
    >>> find_task("avoiding-human").name
    'avoiding'
    >>> find_task("CartPole-v0") is None
    True
    """
    for task in _TASKS.values():
        if name in (task.name, task.env_id) or name in task.demonstrators:
            return task
    return None


def get_task(name: str) -> TaskSpec:
    """Return the task of a name, an environment id or a set of demonstrations.

    Parameters
    ----------
    name : str
        One of the three.

    Returns
    -------
    TaskSpec
        The task.

    Raises
    ------
    ValueError
        If no such task is registered.

    Examples
    --------
    >>> from skvdd.envs import get_task
    >>> get_task("skvdd/Sorting2-v0").name
    'sorting2'
    """
    task = find_task(name)
    if task is None:
        known = ", ".join(map(repr, _TASKS))
        raise ValueError(
            f"task must be one of {known}, got {name!r}. skvdd.envs.register_task makes another "
            "one known."
        )
    return task
