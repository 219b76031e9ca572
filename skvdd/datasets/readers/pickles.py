"""Pickles of arrays, read without running them.

A pickle is a program: it names functions and has them called. Python's unpickler carries it out,
and even one that is kept from naming functions can be made to take all memory by a few bytes. What
holds recorded arrays needs very little of that language. This reader interprets the little itself,
calls nothing that a file names, and makes nothing that is larger than the file.
"""

from __future__ import annotations

import math
import os
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of NumPy arrays, numbers and strings in lists, tuples and dicts.

    Parameters
    ----------
    path : path-like
        The file, of any protocol and any version of NumPy.

    Returns
    -------
    object
        What is in it.

    Raises
    ------
    ValueError
        If the file asks for anything else, which is named; nothing of it has been called then.
        Or if it is damaged, or claims arrays that are larger than it is.

    Examples
    --------
    >>> import pickle
    >>> import tempfile
    >>> import numpy as np
    >>> from skvdd.datasets.readers.pickles import load_arrays
    >>> with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
    ...     _ = file.write(pickle.dumps({"actions": np.arange(3.0)}))
    ...     file.flush()
    ...     load_arrays(file.name)
    {'actions': array([0., 1., 2.])}
    """
    program = Path(path).read_bytes()
    try:
        return _Interpreter(len(program)).run(program)
    except _RefusedError as refusal:
        raise ValueError(f"{os.fspath(path)} cannot be read: {refusal}") from None
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(f"{os.fspath(path)} is no intact pickle of arrays: {error}") from error


class _RefusedError(Exception):
    """A file asks for what is not given."""


class _Type:
    """The type of an array, as far as a pickle has told it."""

    # Booleans, numbers, bytes and strings; none that hold references or fields.
    NAMES = re.compile(r"[biufc]\d{1,2}|[SU]\d{1,9}")

    def __init__(self, name: Any, *_: Any) -> None:
        if not (isinstance(name, str) and self.NAMES.fullmatch(name)):
            raise _RefusedError(f"it has an array of type {str(name)[:20]!r}, not of numbers.")
        self.dtype = np.dtype(name)

    def build(self, state: Any) -> None:
        """Take the order of the bytes; the rest of the state is for types with fields."""
        _, order, *fields = state[:5]
        if any(field is not None for field in fields):
            raise _RefusedError("it has an array with fields, not of numbers.")
        self.dtype = self.dtype.newbyteorder(order)


class _Interpreter:
    """A machine that knows the opcodes of data, and seven functions of NumPy's by name.

    Parameters
    ----------
    n_bytes : int
        Size of the file: no more bytes of arrays are made. (Pickles do not compress.)
    """

    def __init__(self, n_bytes: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.n_bytes_left = 2 * n_bytes  # the oldest protocols make bytes of strings, then arrays
        self.functions: dict[str, Callable[..., Any]] = {
            "numpy.dtype": _Type,
            "numpy.ndarray": self._refuse_call,  # is only passed to the next one
            "_codecs.encode": self._encode,
            "__builtin__.bytes": self._no_bytes,
            "builtins.bytes": self._no_bytes,
        }
        for core in ("numpy.core", "numpy._core"):  # NumPy 2 renamed it
            self.functions[f"{core}.multiarray._reconstruct"] = self._empty_array
            self.functions[f"{core}.multiarray.scalar"] = self._scalar
            self.functions[f"{core}.numeric._frombuffer"] = self._array

    def run(self, program: bytes) -> Any:
        """Return what the program leaves."""
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                (result,) = self.stack
                return result
            if opcode.name in _CONSTANTS:
                self.stack.append(argument)
            elif opcode.name in _OPERATIONS:
                _OPERATIONS[opcode.name](self, argument)
            elif opcode.name not in _NOTHING_TO_DO:
                self._refuse(opcode.name, argument)
        raise ValueError("it has no end")

    def _refuse(self, opcode: str, argument: Any) -> NoReturn:
        if opcode == "INST":
            self.name_global(argument)
        raise _RefusedError(f"it uses {opcode}, and only arrays and plain containers are loaded.")

    # -- the stack ------------------------------------------------------------------------

    def pop(self, count: int) -> list[Any]:
        """Take the last objects off the stack."""
        if count > len(self.stack):
            raise ValueError("it takes more than it has put down")
        start = len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def pop_marked(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        return self.pop(len(self.stack) - self.marks.pop())

    def push_tuple(self, count: int) -> None:
        """Make a tuple of the last objects."""
        self.stack.append(tuple(self.pop(count)))

    def push_dict(self) -> None:
        """Make a dict of the keys and values above the last mark."""
        items = self.pop_marked()
        self.stack.append({})
        self.set_items(items)

    def append(self, items: list[Any]) -> None:
        """Add to the list that is on top."""
        self._top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict that is on top."""
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int | float | None):
                raise _RefusedError(f"it has a {type(key).__name__} for a key of a dict.")
            target[key] = value

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"it takes a {type(self.stack[-1]).__name__} for a {kind.__name__}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        """Keep what is on top for later."""
        self.memo[index] = self.stack[-1]

    # -- what has a name ------------------------------------------------------------------

    def name_global(self, name: str) -> None:
        """Push a function, if it is one of the harmless ones; `name` has a space for its dot."""
        dotted = name.replace(" ", ".", 1)
        if dotted not in self.functions:
            raise _RefusedError(f"it asks for {dotted[:200]}, and only NumPy arrays are loaded.")
        self.stack.append(self.functions[dotted])

    def call(self) -> None:
        """Call one of the harmless functions with the tuple that is on top."""
        function, arguments = self.pop(2)
        if not any(function is harmless for harmless in self.functions.values()):
            raise ValueError("it calls what is no function")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        """Give a type or an empty array its state."""
        (state,) = self.pop(1)
        target = self.stack[-1]
        if isinstance(target, _Type):
            target.build(state)
        elif isinstance(target, np.ndarray) and target.size == 0:
            _, shape, kind, is_fortran, content = state
            array = self._array(content, kind, shape, "F" if is_fortran else "C")
            # The array may have been remembered, so it is filled and not replaced.
            target.__setstate__((1, array.shape, array.dtype, is_fortran, array.tobytes("A")))
        else:
            raise _RefusedError(f"it sets the state of a {type(target).__name__}.")

    def _refuse_call(self, *_: Any) -> NoReturn:
        raise _RefusedError("it makes an array without content.")

    def _no_bytes(self) -> bytes:
        return b""

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """Return the bytes that protocols without bytes write as a string."""
        if not (isinstance(text, str) and encoding == "latin1"):
            raise _RefusedError("it encodes a text, and only NumPy arrays are loaded.")
        self._spend(len(text))
        return text.encode("latin1")

    def _empty_array(self, *_: Any) -> NDArray[Any]:
        """Return an array that `build` fills."""
        return np.empty(0, dtype=np.int8)

    def _scalar(self, kind: Any, content: Any) -> Any:
        """Return a scalar of NumPy's."""
        return self._array(content, kind, (), "C")[()]

    def _array(
        self, content: Any, kind: Any, shape: Any, order: Any, axes: Any = None
    ) -> NDArray[Any]:
        """Return an array of some bytes, if they are as many as its shape and type say."""
        if isinstance(content, str):  # of Python 2
            content = content.encode("latin1")
        if not (isinstance(content, bytes | bytearray) and isinstance(kind, _Type)):
            raise ValueError("it has an array without bytes or type")
        if len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("it has an array of no possible shape")
        if math.prod(shape) * kind.dtype.itemsize != len(content):
            raise ValueError(
                f"it has an array of shape {shape} and type {kind.dtype}, but {len(content)} bytes"
            )
        self._spend(len(content))
        values = np.frombuffer(content, kind.dtype) if content else np.empty(0, kind.dtype)
        array = values.reshape(shape, order="F" if order == "F" else "C")
        return array if axes is None else array.transpose(axes)

    def _spend(self, n_bytes: int) -> None:
        self.n_bytes_left -= n_bytes
        if self.n_bytes_left < 0:
            raise _RefusedError("it has arrays of more bytes than the file.")


_CONSTANTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_NOTHING_TO_DO = frozenset(("PROTO", "FRAME"))
_OPERATIONS: dict[str, Callable[[_Interpreter, Any], Any]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(1),
    "POP_MARK": lambda machine, _: machine.pop_marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_marked()),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "DICT": lambda machine, _: machine.push_dict(),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "GLOBAL": lambda machine, name: machine.name_global(name),
    "STACK_GLOBAL": lambda machine, _: machine.name_global(" ".join(machine.pop(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, i: machine.remember(i)),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, i: machine.stack.append(machine.memo[i])
    ),
}
