"""Demonstrations: the container, and the sets that come with the library."""

from skvdd.datasets.demonstrations import (
    Demonstrations,
    Episode,
    append_goals,
    load_demonstrations,
)

__all__ = ["Demonstrations", "Episode", "append_goals", "load_demonstrations"]
