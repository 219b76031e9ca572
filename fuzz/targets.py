"""What is fuzzed: files of policies and demonstrations, readers, methods, parameters, ONNX."""

from __future__ import annotations

import atexit
import hashlib
import inspect
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize

import skvdd
from fuzz.harness import Target
from fuzz.mutation import ODD_VALUES, Rng, choose, damage, damage_json, odd_array
from fuzz.stores import Store, make_stores
from skvdd import metrics
from skvdd.control.engines import make_engine
from skvdd.control.runtime import SamplerLoop
from skvdd.datasets import Demonstrations, Episode, append_goals

ROOT = Path(__file__).parent.parent
NAMES = ("position", "speed")  # of the states of the policies kept for tests
FOLDER = Path(tempfile.gettempdir())
if Path("/dev/shm").is_dir():
    FOLDER = Path("/dev/shm")  # files that live in memory


@cache
def policy_files() -> tuple[bytes, ...]:
    """Return the files of policies that the tests keep."""
    paths = sorted((ROOT / "tests" / "fixtures" / "policies").glob("*.safetensors"))
    return tuple(path.read_bytes() for path in paths)


@cache
def scratch() -> Path:
    """Return a file to write damaged content to."""
    folder = tempfile.mkdtemp(prefix="skvdd-fuzz-", dir=FOLDER)
    atexit.register(shutil.rmtree, folder)
    return Path(folder) / "file"


@cache
def policies() -> tuple[Any, ...]:
    """Return a small fitted policy of every class, some with windows, goals, chunks."""
    from tests.estimators import make_estimators

    rng = np.random.RandomState(0)
    states, actions = rng.standard_normal((2, 40, 2))
    small = {"hidden_size": 8, "max_iter": 2}
    plain = [e.fit(_frame(states), actions) for e in make_estimators(**small)]
    windowed = make_estimators(**small, window_size=3, encoder="transformer")
    chosen = [windowed[i].fit(rng.standard_normal((40, 3, 2)), actions[:, 0]) for i in (0, 2, 3)]
    goals = make_estimators(**small, goal_dim=1)[5].fit(
        append_goals(states, actions[:, :1]), actions
    )
    chunked = make_estimators(**small)
    chunks = [chunked[i].fit(_frame(states), np.stack([actions] * 3, axis=1)) for i in (0, 3, 6)]
    return (*plain, *chosen, goals, *chunks)


def _frame(states: np.ndarray) -> Any:
    import pandas as pd

    return pd.DataFrame(states, columns=list(NAMES))


# -- files of policies -----------------------------------------------------------------------------


def load_damaged(rng: Rng) -> None:
    """Load a damaged file: a `ValueError`, or the file was not damaged."""
    originals = policy_files()
    content = damage(rng, choose(rng, originals), originals)
    scratch().write_bytes(content)
    policy = skvdd.load(scratch())
    if content not in originals:
        raise AssertionError(f"a damaged file was loaded as {policy}")


def load_forged(rng: Rng) -> None:
    """Load a file with a changed header or tensor and the right checksum; what loads can be saved.

    The checksum protects from accidents, not from an adversary, who can compute it.
    """
    content = choose(rng, policy_files())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["skvdd"])
    tensors = deserialize(content)
    if rng.randint(4):
        header = damage_json(rng, header)
    else:
        _forge_tensor(rng, tensors)
    scratch().write_bytes(_sealed(header, tensors))
    skvdd.load(scratch()).save(scratch())


def _forge_tensor(rng: Rng, tensors: dict[str, Any]) -> None:
    name = choose(rng, sorted(tensors))
    kind = rng.randint(5)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[str(choose(rng, (name + "x", "x", "", "network.")))] = tensors[name].clone()
    elif kind == 2:
        tensors[name] = tensors[name].double() if rng.randint(2) else tensors[name].half()
    elif kind == 3:
        tensors[name] = tensors[name].flatten()[: rng.randint(4)].clone()
    else:
        value = choose(rng, (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30, 1e-45))
        tensors[name].view(-1)[rng.randint(tensors[name].numel())] = value


def _sealed(header: Any, tensors: dict[str, Any]) -> bytes:
    stated = isinstance(header, dict) and "sha256" in header
    if stated and header["sha256"] is not None:
        header = {**header, "sha256": "0" * 64}
    content = serialize(tensors, metadata={"skvdd": json.dumps(header)})
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(b"0" * 64, digest.encode(), 1) if stated else content


# -- demonstrations and sets of others -------------------------------------------------------------


@cache
def demonstration_files() -> tuple[bytes, ...]:
    """Return small files of demonstrations."""
    episode = Episode(np.arange(12.0).reshape(6, 2), np.ones((6, 1), np.float32), "left")
    sets = [Demonstrations([episode]), Demonstrations([episode, episode], "two", {"version": 1})]
    contents = []
    for demonstrations in sets:
        demonstrations.save(scratch())
        contents.append(scratch().read_bytes())
    return tuple(contents)


def load_demonstrations(rng: Rng) -> None:
    """Load a damaged file of demonstrations; what loads has windows."""
    originals = demonstration_files()
    scratch().write_bytes(damage(rng, choose(rng, originals), originals))
    Demonstrations.load(scratch()).windows(2)


@cache
def stores() -> tuple[tuple[Store, tuple[Path, ...]], ...]:
    """Return small data sets of others, each with its files."""
    made = make_stores(scratch().parent / "stores")
    return tuple((store, tuple(store.files())) for store in made)


def read(rng: Rng) -> None:
    """Read a data set of which one file is damaged."""
    _read_one_of(rng, [pair for pair in stores() if "zarr" not in pair[0].name])


def read_zarr(rng: Rng) -> None:
    """The same for the stores of zarr, whose compressors are not Python's.

    Half of the chunks claim the right sizes after the damage: they come to the decompressor.
    """
    chosen = [pair for pair in stores() if "zarr" in pair[0].name]
    _read_one_of(rng, chosen, _with_sizes if rng.randint(2) else None)


def _with_sizes(path: Path, intact: bytes, content: bytes) -> bytes:
    """Return a damaged chunk of Blosc with the sizes in its header put right."""
    if path.name.startswith("."):
        return content
    n_stored = struct.pack("<I", len(content))
    return content[:4] + intact[4:8] + content[8:12] + n_stored + content[16:]


def _read_one_of(
    rng: Rng,
    chosen: list[tuple[Store, tuple[Path, ...]]],
    mend: Callable[[Path, bytes, bytes], bytes] | None = None,
) -> None:
    store, files = choose(rng, chosen)
    path = choose(rng, files)
    intact = path.read_bytes()
    damaged = damage(rng, intact, demonstration_files())
    path.write_bytes(mend(path, intact, damaged) if mend else damaged)
    try:
        store.read()
    finally:
        path.write_bytes(intact)


def containers(rng: Rng) -> None:
    """Give odd arrays to what holds demonstrations, and odd windows."""
    n = rng.randint(1, 5)
    states, _ = odd_array(rng, n, 2, NAMES)
    actions, _ = odd_array(rng, n, 2, NAMES)
    if rng.randint(2):
        append_goals(states, actions)
        return
    demonstrations = Demonstrations([Episode(states, actions, choose(rng, ODD_VALUES))])
    size = choose(rng, (1, 2, 7, 0, -1, 1.5, "a", None))
    goal = choose(rng, (None, None, "future", "recorded", "past", 1))
    columns = choose(rng, (None, [0], [1, 0], [2], [], "a", [0.5], [[0]], 1, [-1]))
    demonstrations.windows(size, goal=goal, goal_columns=columns, random_state=0)


def measures(rng: Rng) -> None:
    """Give odd arrays to the energy score, and odd behaviors to what measures their diversity."""
    n = rng.randint(1, 5)
    if rng.randint(2):
        samples, _ = odd_array(rng, n, 2, NAMES)
        actions, _ = odd_array(rng, n, 2, NAMES)
        samples = [samples, samples] if rng.randint(2) else samples
        metrics.energy_score(samples, actions)
    else:
        modes = [choose(rng, ODD_VALUES) for _ in range(rng.randint(5))]
        measure = choose(
            rng, (metrics.entropy_d3il, metrics.entropy_ceiling, metrics.behavior_diversity)
        )
        measure(modes, choose(rng, (1, 2, 24, 0, -1, 1.5, "a", None)))


# -- methods ---------------------------------------------------------------------------------------

SEEDS: tuple[Any, ...] = (
    0,
    1,
    None,
    2**32 - 1,
    2**32,
    -1,
    1.5,
    "a",
    (),
    [0],
    np.int64(3),
    object(),
)
COUNTS: tuple[Any, ...] = (None, None, 1, 3, np.int64(2), 0, -1, 1.5, "a", True, [], float("nan"))


def methods(rng: Rng) -> None:
    """Call a method of a fitted policy with odd arguments; finite input gives finite output."""
    policy = choose(rng, policies())
    n = rng.randint(1, 5)
    X, valid = odd_array(rng, n, policy.n_features_in_, NAMES)
    calls = [_drawing, _asking, _asking_of_actions]
    calls[rng.randint(3)](rng, policy, X, n, valid)


def _drawing(rng: Rng, policy: Any, X: Any, n: int, valid: bool) -> None:
    count, seed = choose(rng, COUNTS), choose(rng, SEEDS)
    seed = [np.random.RandomState(i) for i in range(rng.randint(5))] if not rng.randint(8) else seed
    options = {}
    if rng.randint(6) == 0 and "n_steps" in inspect.signature(policy.sample).parameters:
        options["n_steps"] = choose(rng, COUNTS)
    if rng.randint(4) == 0:
        _check(policy.act(X, random_state=seed), (n,), valid)
    else:
        drawn = policy.sample(X, count, random_state=seed, **options)
        _check(drawn, (n,) if count is None else (n, count), valid)


def _asking(rng: Rng, policy: Any, X: Any, n: int, valid: bool) -> None:
    name = choose(rng, ("predict", "gating", "experts"))
    if hasattr(policy, name):
        found = getattr(policy, name)(X)
        for values in found if isinstance(found, tuple) else (found,):
            _check(values, (n,), valid)


def _asking_of_actions(rng: Rng, policy: Any, X: Any, n: int, valid: bool) -> None:
    n_actions = policy.network_.n_actions
    y, proper = odd_array(rng, n, n_actions, tuple(f"action {i}" for i in range(n_actions)))
    name = choose(
        rng,
        (
            "log_prob",
            "score",
            "responsibilities",
            "denoise",
            "score_function",
            "denoising_score",
            "log_prob",
        ),
    )
    if not hasattr(policy, name):
        return
    level = choose(rng, (1.0, 0.1, 1e-6, 1e6, 0, -1, "a", None, np.ones(n), np.ones(n + 1), np.nan))
    extra = (level,) if name in {"denoise", "score_function"} else ()
    found = getattr(policy, name)(X, y, *extra)
    _check(found, () if name.endswith("score") else (n,), valid and proper)


def _check(values: Any, shape: tuple[int, ...], valid: bool) -> None:
    """Raise an AssertionError if proper input gave something else than finite numbers."""
    if not valid:
        return
    if np.shape(values)[: len(shape)] != shape:
        raise AssertionError(f"shape {np.shape(values)} where it should begin with {shape}")
    if not np.isfinite(values).all():
        raise AssertionError("finite input of moderate size gave output that is not finite")


def parameters(rng: Rng) -> None:
    """Fit an estimator with one odd parameter on odd data."""
    from tests.estimators import make_estimators

    small = {"hidden_size": 4, "n_layers": 0, "max_iter": 1, "batch_size": 4}
    estimator = choose(rng, make_estimators()).set_params(**small)
    if estimator.get_params().get("architecture") == "gpt":
        estimator.set_params(n_layers=1)
    if hasattr(estimator, "init_iter"):
        estimator.set_params(init_iter=1)
    n = rng.randint(1, 7)
    X, _ = odd_array(rng, n, 2, NAMES) if rng.randint(2) else (rng.standard_normal((n, 2)), True)
    y, _ = odd_array(rng, n, 2, NAMES) if rng.randint(2) else (rng.standard_normal((n, 2)), True)
    own = sorted(set(estimator.get_params(deep=False)) - {"teacher"})  # None trains a large one
    # Sizes that are allowed, but of which no memory and no time is enough, are left out.
    modest = [v for v in ODD_VALUES if not (isinstance(v, int) and v > 64)]
    if rng.randint(2):
        estimator.set_params(**{choose(rng, own): choose(rng, modest)})
    estimator.fit(X, y)


# -- other engines ---------------------------------------------------------------------------------


@cache
def engines() -> tuple[tuple[Any, ...], ...]:
    """Return every policy in torch and in ONNX Runtime, and examples of its inputs."""
    deployments = [policy._deployment() for policy in policies()]
    return tuple(
        (make_engine(d, "torch"), make_engine(d, "onnx"), d.examples()) for d in deployments
    )


def round_trip(rng: Rng) -> None:
    """Ask the exported networks what torch is asked: the same numbers come, for any rows."""
    reference, engine, examples = choose(rng, engines())
    scale = 10.0 ** rng.uniform(-6, 6)
    n = 1 if isinstance(engine, SamplerLoop) else rng.randint(1, 20)  # of control: one row
    inputs = [rng.standard_normal((n, *example.shape[1:])) for example in examples]
    inputs[0] = inputs[0] * scale
    expected = reference(*inputs)
    for right, found in zip(expected, engine(*inputs), strict=True):
        limit = 1e-3 * max(1.0, float(np.abs(right).max()))
        if found.shape != right.shape or not np.abs(found - right).max() <= limit:
            raise AssertionError(f"{type(engine).__name__} differs from torch")


@cache
def controllers() -> tuple[Any, ...]:
    """Return a controller of every policy, on ONNX Runtime."""
    return tuple(policy.controller("onnx", random_state=0) for policy in policies())


def control(rng: Rng) -> None:
    """Give odd observations and goals to controllers."""
    controller = choose(rng, controllers())
    if rng.randint(3) == 0:
        controller.reset(choose(rng, (None, [1.0], np.zeros((1, 1)), 1, "a", [np.nan], {})))
    else:
        controller.reset(None if controller._sizes.goal_dim == 0 else [0.5])
    observation, valid = odd_array(rng, 1, 2, NAMES)
    if valid:
        observation = np.asarray(observation, dtype=float)[0]
    action = controller.act(observation)
    _check(action, (), valid)


def read_intact_files() -> None:
    """Load every file of a policy once, so that all modules are there."""
    for content in policy_files():
        scratch().write_bytes(content)
        skvdd.load(scratch())


# An integer that no float can hold overflows, in NumPy and in scikit-learn, before it is checked.
REFUSALS = (ValueError, TypeError, OverflowError)

# The more a case costs, the fewer of them there are.
TARGETS = (
    Target("load-damaged", 150, load_damaged, prepare=read_intact_files),
    Target("load-forged", 6, load_forged, prepare=read_intact_files),
    Target("demonstrations", 100, load_demonstrations),
    Target("readers", 30, read, (ValueError, FileNotFoundError), stores),
    Target("containers", 245, containers, REFUSALS),
    Target("measures", 250, measures, REFUSALS),
    Target("methods", 8, methods, REFUSALS, policies),
    Target("parameters", 1, parameters, (*REFUSALS, FloatingPointError)),
    Target("onnx", 5, round_trip, prepare=engines),
    Target("controllers", 200, control, REFUSALS, controllers),
    Target("zarr", 5, read_zarr, (ValueError, FileNotFoundError), stores),
)
