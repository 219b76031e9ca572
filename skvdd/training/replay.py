"""Repeat an iteration on a GPU without Python: its kernels are captured once, then replayed.

The networks here are small, and to launch a kernel takes longer than to run it. A CUDA graph
launches all kernels of an iteration at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

CAPTURING = threading.Lock()  # one capture waits for the device, which would break another
EAGER_CALLS = 3  # before the capture: what is made at a first call must be there


class Replay:
    """Calls of one function that a GPU repeats.

    The first calls run it as it is, the next one records its kernels, and all later ones replay
    them: the function must do the same at each call, change what it remembers in place on the GPU,
    and never wait for it. Random numbers continue as if it had been called.

    Parameters
    ----------
    generator : torch.Generator
        Where random numbers come from; on the GPU.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.stream = torch.cuda.Stream(generator.device)
        self.n_calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """Do what the function does, the same one at each call, and return a copy of its result."""
        with torch.cuda.device(self.stream.device):
            if self.graph is None and self.n_calls < EAGER_CALLS:
                self.n_calls += 1
                return self._run(function)
            if self.graph is None:
                self.graph = self._capture(function)
            self.graph.replay()
            return self.result.clone()  # the next replay writes into the same memory

    def _run(self, function: Callable[[], Tensor]) -> Tensor:
        """Call the function on the stream of the capture, where the first calls belong."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result.clone()

    def _capture(self, function: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator.graphsafe_get_state())
        # Other threads may continue theirs: only this one records.
        with (
            CAPTURING,
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            self.result = function()
        return graph
