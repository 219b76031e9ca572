"""The sets that come with the library, and longer ones recorded on first use."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from platformdirs import user_cache_path

from skvdd.datasets.demonstrations import Demonstrations, is_count
from skvdd.datasets.episode import Episode

if TYPE_CHECKING:
    from skvdd.envs import TaskSpec

PORTION = 250  # episodes after which a recording is kept


def load_demonstrations(
    set_name: str = "avoiding", n_episodes: int | None = None, *, n_jobs: int | None = -1
) -> Demonstrations:
    """Return scripted demonstrations of a task: a small set at once, a longer one on first use.

    A small set of every task comes with the library. Where more episodes are asked for than it
    has, the task's demonstrator records the rest in the simulator. What was recorded is kept in
    the user's cache directory (`cache_directory`), in one file for each set that grows when more
    is asked for, and is never recorded again.

    Parameters
    ----------
    set_name : str, default="avoiding"
        ``"avoiding"``: 96 episodes of a scripted demonstrator, four for each of the 24
        behaviors of `~skvdd.envs.avoiding.Avoiding`, with deviations and corrections. Its
        variants are harder to imitate, 96 episodes each:

        - ``"avoiding-hesitant"``: the speed drifts threefold within an episode, and there are
          pauses of 5 to 15 steps, short ways back and sudden jerks.
        - ``"avoiding-overlapping"``: gaps are chosen late, from shared ground in the middle or
          after aiming at a neighboring gap, and are used more widely.
        - ``"avoiding-longtail"``: the behaviors follow Zipf's law (exponent 0.85), from 21
          episodes for the most frequent to one for each of the rarest.
        - ``"avoiding-human"``: all of that at once.

        The other tasks start in contexts, and each context is shown in every behavior before
        the next one:

        - ``"pushing"``: 132 episodes of `~skvdd.envs.pushing.Pushing`.
        - ``"aligning"``: 100 of `~skvdd.envs.aligning.Aligning`.
        - ``"sorting2"``, ``"sorting4"``, ``"sorting6"``: 176, 72 and 40 of
          `~skvdd.envs.sorting.Sorting`.
        - ``"blockpush"``: 270 of `~skvdd.envs.block_push.BlockPush`, which has goals:
          ``demos.windows(window_size, goal="recorded")``.

        The name of a task of your own, or of one of its sets, once `~skvdd.envs.register_task`
        made it known.
    n_episodes : int or None, default=None
        The first so many; None is all that come with the library. Any beginning of a set spreads
        evenly over the behaviors. In ``"avoiding-longtail"`` and ``"avoiding-human"`` every 96
        episodes follow the law, in random order: a beginning may miss rare behaviors.
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
        If there is no such set, or nothing of it comes with the library and ``n_episodes`` is None.

    Examples
    --------
    >>> from skvdd.datasets import load_demonstrations
    >>> demos = load_demonstrations("avoiding", n_episodes=24)
    >>> len(demos), len(set(demos.behaviors))
    (24, 24)
    """
    from skvdd.datasets.experts.recording import find_set

    if not (n_episodes is None or is_count(n_episodes)):
        raise ValueError(
            f"n_episodes must be an integer of at least 1, or None, got {n_episodes!r}."
        )
    task, set_name = find_set(set_name)
    embedded = _embedded(task, set_name)
    if n_episodes is None:
        if embedded is None:
            raise ValueError(
                f"n_episodes must be an integer for {set_name!r}, of which nothing comes with the "
                "library, got None."
            )
        return embedded
    if embedded is not None and n_episodes <= len(embedded):
        return embedded[:n_episodes]
    return _kept_or_recorded(task, set_name, embedded, n_episodes, n_jobs)


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


def _embedded(task: TaskSpec, set_name: str) -> Demonstrations | None:
    """Return the set that comes with the library, None where there is none of this task."""
    file = files("skvdd.datasets") / "data" / f"{set_name}.npz"
    if not file.is_file():
        return None
    with as_file(file) as path:
        embedded = Demonstrations.load(path)
    return embedded if _is_of(task, set_name, embedded) else None


def _is_of(task: TaskSpec, set_name: str, demonstrations: Demonstrations) -> bool:
    """Say whether this version of a task's demonstrator recorded a set."""
    told = demonstrations.metadata
    recorded = (told.get("environment"), told.get("version", 1))
    return recorded == (task.env_id, task.demonstrator(set_name).version)


# ---------------------------------------------------------------------------------------
# The sets that grow
# ---------------------------------------------------------------------------------------


def _kept_or_recorded(
    task: TaskSpec,
    set_name: str,
    embedded: Demonstrations | None,
    n_episodes: int,
    n_jobs: int | None,
) -> Demonstrations:
    """Return the beginning of a set that grows in the cache; record what it lacks."""
    path = _path(task, set_name, is_own=embedded is not None)
    with suppress(OSError, ValueError):  # a file that has enough is not waited for
        whole = Demonstrations.load(path)
        if len(whole) >= n_episodes and _is_of(task, set_name, whole):
            return whole[:n_episodes]
    with _locked(path) as is_locked:
        kept = _kept(path)  # looked at again: another process may have recorded more
        target = path if is_locked else None
        if kept is not None and not _is_of(task, set_name, kept):
            _warn_of_loss(path, f"{path.name} is of another environment or version")
            kept = target = None
        episodes = list(max(kept or (), embedded or (), key=len))
        whole = _grow(task, set_name, episodes, n_episodes, n_jobs, target)
    return whole[:n_episodes]


def _path(task: TaskSpec, set_name: str, is_own: bool) -> Path:
    """Return where a set is kept; another version or simulator makes other episodes.

    Names of sets are the library's own only where a beginning comes with it. All others may be
    given to several environments.
    """
    mujoco = ".".join(version("mujoco").split(".")[:2])
    demonstrator = task.demonstrator(set_name)
    name = set_name if is_own else f"{set_name}-{sha256(task.env_id.encode()).hexdigest()[:8]}"
    return cache_directory() / f"{name}-v{demonstrator.version}-mujoco{mujoco}.npz"


def _kept(path: Path) -> Demonstrations | None:
    """Return what a file keeps, None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        return Demonstrations.load(path)
    except ValueError as error:
        warnings.warn(f"{error}. It is recorded anew.", stacklevel=4)
        return None


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Let one process at a time record a set; say whether it can be kept at all."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Where no file can be made, the lock might take that for another process's hold and wait.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        lock.acquire()  # however long another process records
    except (OSError, NotImplementedError) as error:  # the second: locks are not supported
        _warn_of_loss(path, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _grow(
    task: TaskSpec,
    set_name: str,
    episodes: list[Episode],
    n_episodes: int,
    n_jobs: int | None,
    path: Path | None,
) -> Demonstrations:
    """Record what a set lacks, and keep it as it comes."""
    from skvdd.datasets.experts.recording import metadata_of, recorded_episodes

    metadata = metadata_of(task, set_name)
    numbers = range(len(episodes), n_episodes)
    n_kept = len(episodes)
    try:
        for episode in recorded_episodes(task, set_name, numbers, n_jobs=n_jobs):
            episodes.append(episode)
            if path is not None and len(episodes) % PORTION == 0:
                n_kept = len(episodes)
                grown = Demonstrations(tuple(episodes), set_name, metadata)
                path = path if _keep(grown, path) else None
    finally:  # an interrupt and an error lose nothing either
        if path is not None and len(episodes) > n_kept:
            _keep(Demonstrations(tuple(episodes), set_name, metadata), path)
    return Demonstrations(tuple(episodes), set_name, metadata)


def _keep(demonstrations: Demonstrations, path: Path) -> bool:
    """Write a set, and say whether that was possible."""
    try:
        demonstrations.save(path)
    except OSError as error:
        _warn_of_loss(path, error)
        return False
    return True


def _warn_of_loss(path: Path, error: Exception | str) -> None:
    """Warn that a recording is not kept."""
    warnings.warn(
        f"demonstrations cannot be kept in {path.parent} ({error}); they will be recorded anew "
        "the next time. SKVDD_CACHE names another directory.",
        stacklevel=5,
    )
