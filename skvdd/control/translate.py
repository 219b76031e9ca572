"""From a torch module to the NumPy program that does the same."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skvdd.control.program import FUNCTIONS, Call, Program

IGNORED = {"_assert_tensor_metadata"}
SAME = {"alias", "detach", "detach_", "clone", "contiguous", "lift_fresh_copy", "dropout"}
RENAMED = {"_to_copy": "to", "reshape": "view", "_unsafe_view": "view", "clip": "clamp"}
# Make a tensor of plain numbers; of another tensor they take no more than the shape.
FILLED = {"ones": 1.0, "ones_like": 1.0, "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0}
MADE = {*FILLED, "full", "full_like", "new_full", "scalar_tensor", "arange"}
NEUTRAL = {"alpha": 1, "value": 1, "approximate": "none"}  # keywords that change nothing
LISTS = {"cat", "stack", "index_put"}  # have a list of tensors among their arguments


def to_numpy(module: nn.Module, *examples: Tensor) -> Program:
    """Trace a module on examples and write it down in NumPy.

    What does not depend on the inputs is computed here once. The program takes arrays of the
    examples' shapes and dtypes only.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode, on the CPU; returns a tensor or a tuple of tensors.
    *examples : Tensor
        One for each argument.

    Returns
    -------
    Program

    Raises
    ------
    NotImplementedError
        If the module uses an operator that `skvdd.control.program` does not know.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        exported = torch.export.export(module, examples).run_decompositions({})
    return _Translation(exported).program()


class _Slot(int):
    """A value that the program computes, by its number."""


class _Translation:
    """The state of a translation: what each node of the graph has become."""

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.graph = exported.graph
        signature = exported.graph_signature
        named = {**exported.state_dict, **exported.constants}
        sources = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.constants = {name: _array(named[source]) for name, source in sources.items()}
        self.values: dict[torch.fx.Node, Any] = {}
        self.calls: list[Call] = []
        self.n_values = 0

    def program(self) -> Program:
        outputs: list[int] = []
        n_inputs = 0
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in self.constants:
                self.values[node] = self.constants[node.name]
            elif node.op == "placeholder":
                self.values[node] = self._slot()
                n_inputs = self.n_values
            elif node.op == "call_function" and _name(node.target) not in IGNORED:
                self.values[node] = self._call(node)
            elif node.op == "output":
                outputs = [self._output(self.values[part]) for part in node.args[0]]
        return Program(self.calls, n_inputs, self.n_values, outputs)

    def _slot(self) -> _Slot:
        self.n_values += 1
        return _Slot(self.n_values - 1)

    def _output(self, value: Any) -> int:
        """Return the number of a value, given one to a constant if need be."""
        if not isinstance(value, _Slot):
            self.calls.append(Call("constant", (value,), (), int(self._slot())))
            return self.n_values - 1
        return int(value)

    def _call(self, node: torch.fx.Node) -> Any:
        """Return what a node becomes: a slot, a constant, or what its argument is."""
        name = _name(node.target)
        if name in SAME:
            return self._value(node.args[0])
        if name in MADE:
            return _constant(node)
        if name not in FUNCTIONS:
            raise NotImplementedError(
                f"engine='numpy' does not know the operator {name!r} of this network; "
                "use engine='onnx' or 'torch'."
            )
        arguments = self._arguments(name, node)
        if not any(isinstance(argument, _Slot) for argument in arguments):
            return FUNCTIONS[name](*arguments)
        slots = tuple((i, int(a)) for i, a in enumerate(arguments) if isinstance(a, _Slot))
        result = self._slot()
        blank = tuple(None if isinstance(a, _Slot) else a for a in arguments)
        self.calls.append(Call(name, blank, slots, int(result)))
        return result

    def _arguments(self, name: str, node: torch.fx.Node) -> list[Any]:
        """Return the arguments as the function of that name takes them."""
        keywords: dict[str, Any] = {
            key: value for key, value in node.kwargs.items() if value is not None
        }
        if name == "to":
            return [self._value(node.args[0]), _dtype(keywords["dtype"])]
        if name in LISTS:
            return self._listed(name, node)
        for key, value in keywords.items():
            if key != "is_causal" and NEUTRAL.get(key) != value:
                raise NotImplementedError(
                    f"engine='numpy' does not know {name!r} with {key}={value!r}; use "
                    "engine='onnx' or 'torch'."
                )
        arguments = [self._value(argument) for argument in node.args]
        if keywords.get("is_causal"):
            arguments += [None, 0.0, True][len(arguments) - 3 :]
        return [tuple(a) if isinstance(a, list) else a for a in arguments]

    def _listed(self, name: str, node: torch.fx.Node) -> list[Any]:
        if name == "index_put":
            target, indices, values = node.args[:3]
            return [self._value(part) for part in (target, values, *indices)]  # type: ignore[misc]
        parts, *axis = node.args
        return [axis[0] if axis else 0, *(self._value(part) for part in parts)]  # type: ignore[union-attr]

    def _value(self, argument: Any) -> Any:
        return self.values[argument] if isinstance(argument, torch.fx.Node) else argument


def _name(target: Any) -> str:
    """Return the name of an operator, without its overload."""
    if target is operator.getitem:
        return "getitem"
    name = getattr(target, "_opname", None) or str(target)
    return RENAMED.get(name, name)


def _constant(node: torch.fx.Node) -> np.ndarray:
    """Evaluate a node that makes a new tensor from plain numbers."""
    example, name = node.meta["val"], _name(node.target)
    if name == "arange":
        numbers: Any = node.args
        return np.arange(*numbers).astype(_dtype(example.dtype))
    fill = FILLED[name] if name in FILLED else node.args[-1]
    return np.full(tuple(example.shape), fill, dtype=_dtype(example.dtype))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _dtype(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
