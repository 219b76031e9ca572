"""The sets that come with the library, and longer ones recorded on first use."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

from platformdirs import user_cache_path

from skvdd.datasets.demonstrations import Demonstrations, is_count

EMBEDDED = (
    "avoiding",
    "avoiding-hesitant",
    "avoiding-overlapping",
    "avoiding-longtail",
    "avoiding-human",
    "pushing",
    "aligning",
    "sorting2",
    "sorting4",
    "sorting6",
    "blockpush",
)
# Module of the demonstrator that records more, by task.
RECORDED = {
    "pushing": "skvdd.datasets.experts.pushing",
    "aligning": "skvdd.datasets.experts.aligning",
    "sorting2": "skvdd.datasets.experts.sorting",
    "sorting4": "skvdd.datasets.experts.sorting",
    "sorting6": "skvdd.datasets.experts.sorting",
    "blockpush": "skvdd.datasets.experts.block_push",
}


def load_demonstrations(
    task: str = "avoiding", n_episodes: int | None = None, *, n_jobs: int | None = -1
) -> Demonstrations:
    """Return scripted demonstrations of a task: a small set at once, a longer one on first use.

    A small set of every task comes with the library. Where more episodes are asked for than it
    has, the scripted demonstrator records the rest in the simulator, and the set is kept in the
    user's cache directory (`cache_directory`) for the next time.

    Parameters
    ----------
    task : str, default="avoiding"
        ``"avoiding"``: 96 episodes of a scripted demonstrator, four for each of the 24
        behaviours of `~skvdd.envs.avoiding.Avoiding`, with deviations and corrections. Its
        variants are harder to imitate, 96 episodes each:

        - ``"avoiding-hesitant"``: the speed drifts threefold within an episode, and there are
          pauses of 5 to 15 steps, short ways back and sudden jerks.
        - ``"avoiding-overlapping"``: gaps are chosen late, from shared ground in the middle or
          after aiming at a neighbouring gap, and are used more widely.
        - ``"avoiding-longtail"``: the behaviours follow Zipf's law (exponent 0.85), from 21
          episodes for the most frequent to one for each of the rarest.
        - ``"avoiding-human"``: all of that at once.

        Of the others more are recorded where more are wanted, each episode in a context of its own:

        - ``"pushing"``: 132 episodes of `~skvdd.envs.pushing.Pushing`.
        - ``"aligning"``: 100 of `~skvdd.envs.aligning.Aligning`.
        - ``"sorting2"``, ``"sorting4"``, ``"sorting6"``: 176, 72 and 40 of
          `~skvdd.envs.sorting.Sorting`.
        - ``"blockpush"``: 270 of `~skvdd.envs.block_push.BlockPush`, which has goals:
          ``demos.windows(window_size, goal="recorded")``.
    n_episodes : int or None, default=None
        The first so many; None is all that come with the library. Any beginning of a set spreads
        evenly over the behaviours. In ``"avoiding-longtail"`` and ``"avoiding-human"`` it is a
        random sample of the set without replacement instead, and may miss rare behaviours. The
        sets of Avoiding have no more than their 96.
    n_jobs : int or None, default=-1
        Workers that record, if need be: -1 takes all that joblib's backend has, None what
        `joblib.parallel_config` says.

    Returns
    -------
    Demonstrations
        The set; a shorter one is the beginning of a longer one.

    Raises
    ------
    ValueError
        If there is no such task, or it has no so many episodes.

    Examples
    --------
    >>> from skvdd.datasets import load_demonstrations
    >>> demos = load_demonstrations("avoiding", n_episodes=24)
    >>> len(demos), len(set(demos.behaviors))
    (24, 24)
    """
    if task not in EMBEDDED:
        known = ", ".join(map(repr, EMBEDDED))
        raise ValueError(f"task must be one of {known}, got {task!r}.")
    with as_file(files("skvdd.datasets") / "data" / f"{task}.npz") as path:
        embedded = Demonstrations.load(path)
    if n_episodes is None:
        return embedded
    if not is_count(n_episodes):
        raise ValueError(
            f"n_episodes must be an integer of at least 1, or None, got {n_episodes!r}."
        )
    if n_episodes <= len(embedded):
        return embedded.subset(range(n_episodes))
    if task not in RECORDED:
        raise ValueError(
            f"n_episodes must be at most {len(embedded)}, the number of episodes of {task!r}, "
            f"got {n_episodes}."
        )
    return _kept_or_recorded(task, embedded, n_episodes, n_jobs)


def cache_directory() -> Path:
    """Return where recorded demonstrations are kept.

    ``SKVDD_CACHE`` names it; otherwise it is ``skvdd`` in the user's cache directory, which is
    ``~/.cache`` (or ``XDG_CACHE_HOME``) on Linux. All in it can be deleted at any time.

    Returns
    -------
    Path
        The folder, which need not exist yet.

    Examples
    --------
    >>> from skvdd.datasets import cache_directory
    >>> cache_directory().is_absolute()
    True
    """
    chosen = os.environ.get("SKVDD_CACHE")
    return Path(chosen) if chosen else user_cache_path("skvdd", appauthor=False)


def _kept_or_recorded(
    task: str, embedded: Demonstrations, n_episodes: int, n_jobs: int | None
) -> Demonstrations:
    """Return a set that is longer than the embedded one, which is its beginning."""
    folder = cache_directory()
    version = embedded.metadata["version"]
    path = folder / f"{task}-v{version}-{n_episodes}.npz"
    if path.is_file():
        try:
            return Demonstrations.load(path)
        except ValueError as error:
            warnings.warn(f"{error} It is recorded anew.", stacklevel=3)
    from skvdd.datasets.experts.recording import record

    demonstrator = import_module(RECORDED[task]).DEMONSTRATORS[task]
    rest = record(demonstrator, n_episodes, first=len(embedded), n_jobs=n_jobs)
    whole = Demonstrations((*embedded, *rest), embedded.name, embedded.metadata)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole.save(path)
    except OSError as error:
        warnings.warn(
            f"the demonstrations could not be kept in {folder} ({error}); they will be recorded "
            "anew the next time. SKVDD_CACHE names another directory.",
            stacklevel=3,
        )
    return whole
