"""Where a result comes from: the commit, the packages, the machine, and the rows of data."""

from __future__ import annotations

import hashlib
import inspect
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import skvdd
from skvdd.datasets import Demonstrations, load_demonstrations
from skvdd.datasets.features import task_features

ROOT = Path(__file__).parents[1]
CODE = ("skvdd", "benchmarks")  # folders whose changes may change a result
N_PROBES = 64  # rows whose features tell whether the features are the same
DECIMALS = 6  # of their numbers that count: processors differ in the last


def digest(content: Any) -> str:
    """Return a short hash of bytes, of a text, or of several of them."""
    if isinstance(content, bytes | str):
        content = [content]
    hashed = hashlib.sha256()
    for part in content:
        hashed.update(part.encode() if isinstance(part, str) else part)
    return hashed.hexdigest()[:16]


# -- the code ------------------------------------------------------------------------------------


@cache
def commit() -> str:
    """Return the commit of this clone, ``-dirty`` at its end where code has changed since."""
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def source_digest(cls: type) -> str:
    """Return a hash of the file that defines a class; of its name where there is none."""
    try:
        return digest(inspect.getsource(sys.modules[cls.__module__]))
    except (KeyError, OSError, TypeError):
        return digest(f"{cls.__module__}:{cls.__qualname__}")


def environment(code: str) -> dict[str, str]:
    """Return the commit that was loaded, versions, processor and date."""
    packages = {name: version(name) for name in ("torch", "mujoco")}
    return {
        "commit": code,
        "skvdd": skvdd.__version__,
        **packages,
        "processor": processor(),
        "date": time.strftime("%Y-%m-%d"),
    }


@cache
def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


# -- the data ------------------------------------------------------------------------------------


@cache
def describe_set(name: str, n_episodes: int | None) -> dict[str, Any]:
    """Return name, version, size and a hash of all rows of the first episodes of a set."""
    demonstrations = load_demonstrations(name, n_episodes)
    return {
        "name": name,
        "version": demonstrations.metadata.get("version"),
        "n_episodes": len(demonstrations),
        "rows": digest(_tables(demonstrations)),
    }


def _tables(demonstrations: Demonstrations) -> Iterable[bytes]:
    for episode in demonstrations:
        for table in (episode.states, episode.actions, episode.goals):
            if table is not None:
                yield np.ascontiguousarray(table).tobytes()


@cache
def describe_features(task: str, set_name: str, n_episodes: int | None, goal: str | None) -> str:
    """Return a hash of the features of some rows: it changes when the features do."""
    rows, _, _ = load_demonstrations(set_name, n_episodes).windows(1, goal=goal, random_state=0)
    rows = rows[:: max(1, len(rows) // N_PROBES)].astype(np.float64)
    features = task_features(task, 1).transform(rows)
    return digest(np.ascontiguousarray(features.round(DECIMALS) + 0.0).tobytes())
