"""A method that is none of this library's: the action of the nearest demonstrated state."""

import numpy as np
from sklearn.neighbors import NearestNeighbors


class Nearest:
    """Act as one of the five nearest demonstrated windows did."""

    def __init__(self, window_size=1, random_state=None):
        self.window_size, self.random_state = window_size, random_state

    def fit(self, X, y):
        self.scale_ = X.std(axis=0) + 1e-9
        self.neighbors_ = NearestNeighbors(n_neighbors=5).fit(X / self.scale_)
        self.actions_ = y
        return self

    def act(self, X, *, random_state=None):
        found = self.neighbors_.kneighbors(X / self.scale_, return_distance=False)
        chosen = random_state.randint(5, size=len(X))
        return self.actions_[found[np.arange(len(X)), chosen]]
