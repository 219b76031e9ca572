"""Readers of the public data sets: D3IL, relay kitchen, block push, zarr stores and Minari."""

from skvdd.datasets.readers.d3il import read_contexts, read_d3il
from skvdd.datasets.readers.minari import read_minari
from skvdd.datasets.readers.play import read_block_push, read_relay_kitchen
from skvdd.datasets.readers.replay_buffer import read_zarr

__all__ = [
    "read_block_push",
    "read_contexts",
    "read_d3il",
    "read_minari",
    "read_relay_kitchen",
    "read_zarr",
]
