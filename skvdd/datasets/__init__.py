"""Demonstrations: the container, and the sets that come with the library."""

from skvdd.datasets.demonstrations import Demonstrations, Episode, append_goals
from skvdd.datasets.loading import cache_directory, load_demonstrations

__all__ = ["Demonstrations", "Episode", "append_goals", "cache_directory", "load_demonstrations"]
