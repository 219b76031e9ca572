"""Demonstrations: the container, and the sets that come with the library."""

from skvdd.datasets.demonstrations import Demonstrations, Episode, load_demonstrations

__all__ = ["Demonstrations", "Episode", "load_demonstrations"]
