"""Random damage: to bytes, to JSON, and arrays of every kind that a user may come with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

Rng = np.random.RandomState

NUMBERS = (0, 1, -1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63))
ODD_VALUES: tuple[Any, ...] = (
    *NUMBERS,
    10**9,
    10**30,
    0.5,
    -0.5,
    1e-320,
    1e300,
    float("nan"),
    float("inf"),
    True,
    False,
    None,
    "",
    "auto",
    "cpu",
    "nothing",
    "\x00\ud83d\ude00",
    [],
    [1, 2],
    [[]],
    {},
    {"kind": "mlp"},
)


def choose(rng: Rng, options: Any) -> Any:
    """Return one of several, unchanged in type."""
    return options[rng.randint(len(options))]


# -- bytes ----------------------------------------------------------------------------------------


def damage(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    """Return content with one to four kinds of damage."""
    for _ in range(1 + rng.geometric(0.6) % 4):
        content = choose(rng, DAMAGES)(rng, content, others)
    return content


def _flip(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    for _ in range(rng.geometric(0.5)):
        changed[_place(rng, changed)] ^= 1 << rng.randint(8)
    return bytes(changed)


def _set(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    """Overwrite with a number that programs trip over."""
    width = choose(rng, (1, 2, 4, 8))
    number = (choose(rng, NUMBERS) % 2 ** (8 * width)).to_bytes(
        width, choose(rng, ("little", "big"))
    )
    place = _place(rng, content)
    return content[:place] + number + content[place + width :]


def _truncate(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    return content[: _place(rng, content)]


def _extend(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    return content + rng.bytes(1 + rng.randint(64))


def _insert(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    place = _place(rng, content)
    return content[:place] + rng.bytes(1 + rng.randint(16)) + content[place:]


def _remove(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    place = _place(rng, content)
    return content[:place] + content[place + 1 + rng.randint(32) :]


def _repeat(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    place = _place(rng, content)
    part = content[place : place + 1 + rng.randint(64)]
    return content[:place] + part * rng.randint(2, 9) + content[place:]


def _blank(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    place, length = _place(rng, content), 1 + rng.randint(64)
    return content[:place] + choose(rng, (b"\0", b"\xff", b"9", b"[")) * length + content[place:]


def _splice(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    other = choose(rng, others)
    return content[: _place(rng, content)] + other[_place(rng, other) :]


def _replace(rng: Rng, content: bytes, others: tuple[bytes, ...]) -> bytes:
    return choose(rng, (b"", rng.bytes(rng.randint(1, 200)), choose(rng, others)))


DAMAGES: tuple[Callable[[Rng, bytes, tuple[bytes, ...]], bytes], ...] = (
    _flip,
    _flip,
    _flip,
    _set,
    _set,
    _truncate,
    _extend,
    _insert,
    _remove,
    _repeat,
    _blank,
    _splice,
    _replace,
)


def _place(rng: Rng, content: bytes | bytearray) -> int:
    """Return a position, half the time near the beginning, where headers are."""
    end = max(1, len(content))
    return int(rng.randint(min(end, 64) if rng.randint(4) == 0 else end))


# -- JSON -----------------------------------------------------------------------------------------


def damage_json(rng: Rng, value: Any) -> Any:
    """Return a copy of what JSON holds with one place changed, left out or doubled."""
    if isinstance(value, dict) and value and rng.randint(20):
        name = choose(rng, list(value))
        if rng.randint(12) == 0:
            return {n: v for n, v in value.items() if n != name}
        if rng.randint(24) == 0:
            return {**value, str(choose(rng, ODD_VALUES)): choose(rng, ODD_VALUES)}
        return {**value, name: damage_json(rng, value[name])}
    if isinstance(value, list) and value and rng.randint(4):
        place = rng.randint(len(value))
        return [*value[:place], damage_json(rng, value[place]), *value[place + 1 :]]
    if isinstance(value, int) and rng.randint(2):
        return value + int(choose(rng, (-1, 1, value, -2 * value)))
    return choose(rng, ODD_VALUES)


# -- arguments ------------------------------------------------------------------------------------


def odd_array(rng: Rng, n: int, width: int, names: tuple[str, ...]) -> tuple[Any, bool]:
    """Return what may be given for an array (n, width), and whether it is one.

    Parameters
    ----------
    rng : RandomState
        Source of the choice and of the numbers.
    n, width : int
        Rows and columns that are wanted.
    names : tuple of str
        Names of the columns, for data frames.

    Returns
    -------
    value : object
        An array, or something else.
    valid : bool
        Whether it holds n rows of width finite numbers of moderate size, in any guise.
    """
    plain = rng.standard_normal((n, width)) * 10.0 ** rng.uniform(-6, 6)
    if rng.randint(3) == 0:
        return choose(rng, GUISES)(rng, plain, names), True
    return choose(rng, ODDITIES)(rng, plain, names), False


def _strided(rng: Rng, plain: np.ndarray, names: Any) -> np.ndarray:
    return np.repeat(np.repeat(plain, 2, axis=0), 3, axis=1)[::2, ::3]


def _backwards(rng: Rng, plain: np.ndarray, names: Any) -> np.ndarray:
    return plain[::-1, ::-1]


def _read_only(rng: Rng, plain: np.ndarray, names: Any) -> np.ndarray:
    plain.flags.writeable = False
    return plain


GUISES: tuple[Callable[[Rng, np.ndarray, Any], Any], ...] = (
    lambda rng, plain, names: plain,
    lambda rng, plain, names: plain.astype(np.float32),
    lambda rng, plain, names: plain.astype(">f8"),
    lambda rng, plain, names: plain.astype(np.longdouble),
    lambda rng, plain, names: np.asfortranarray(plain),
    lambda rng, plain, names: np.clip(plain, -100, 100).astype(np.int8),
    lambda rng, plain, names: plain > 0,
    lambda rng, plain, names: plain.astype(object),
    lambda rng, plain, names: plain.tolist(),
    lambda rng, plain, names: pd.DataFrame(plain, columns=list(names)),
    lambda rng, plain, names: np.broadcast_to(plain[:1], plain.shape),
    lambda rng, plain, names: plain.view(np.matrix).A,
    lambda rng, plain, names: plain[:, None].repeat(2, axis=1)[:, 0],
    _strided,
    _backwards,
    _read_only,
)


def _poisoned(rng: Rng, plain: np.ndarray, names: Any) -> np.ndarray:
    poison = choose(rng, (np.nan, np.inf, -np.inf, 1e300, -1e300, 5e-324, 1e39))
    plain[rng.randint(len(plain)), rng.randint(plain.shape[1])] = poison
    return plain


def _other_shape(rng: Rng, plain: np.ndarray, names: Any) -> np.ndarray:
    shape = tuple(rng.randint(0, 5, size=rng.randint(0, 6)))
    return rng.standard_normal(shape)


def _mixed(rng: Rng, plain: np.ndarray, names: Any) -> np.ndarray:
    values = plain.astype(object)
    oddity = choose(rng, (None, "a", "1.5", b"x", [1], {}, 1j, object, np.nan, 10**400))
    values[rng.randint(len(values)), rng.randint(values.shape[1])] = oddity
    return values


def _ragged(rng: Rng, plain: np.ndarray, names: Any) -> list[Any]:
    rows = plain.tolist()
    rows[rng.randint(len(rows))].append(0.0)
    return rows


ODDITIES: tuple[Callable[[Rng, np.ndarray, Any], Any], ...] = (
    _poisoned,
    _poisoned,
    _other_shape,
    _other_shape,
    _mixed,
    _ragged,
    lambda rng, plain, names: plain[:, :-1],
    lambda rng, plain, names: plain[:0],
    lambda rng, plain, names: np.hstack([plain, plain]),
    lambda rng, plain, names: plain.T,
    lambda rng, plain, names: plain[None],
    lambda rng, plain, names: plain.astype(str),
    lambda rng, plain, names: plain.astype("S8"),
    lambda rng, plain, names: plain * 1j,
    lambda rng, plain, names: plain.astype("datetime64[s]"),
    lambda rng, plain, names: plain.astype("timedelta64[s]"),
    lambda rng, plain, names: np.ma.masked_greater(plain, 0),
    lambda rng, plain, names: np.zeros(len(plain), dtype=[("a", "f8"), ("b", "i4")]),
    lambda rng, plain, names: sparse.csr_matrix(plain),
    lambda rng, plain, names: pd.DataFrame(plain),
    lambda rng, plain, names: pd.DataFrame(plain, columns=list(names)[::-1]),
    lambda rng, plain, names: pd.DataFrame(plain.astype(str), columns=list(names)),
    lambda rng, plain, names: pd.Series(plain[:, 0]),
    lambda rng, plain, names: pd.DataFrame(plain, columns=list(names)).astype("category"),
    lambda rng, plain, names: (row for row in plain),
    lambda rng, plain, names: choose(rng, ODD_VALUES),
)
