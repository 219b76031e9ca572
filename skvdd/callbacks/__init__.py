"""Callbacks of `fit`, for ``policy.set_callbacks``: stopping early, monitoring, logs, checkpoints.

They follow the protocol of `sklearn.callback` and can be mixed with scikit-learn's own. Each takes
part in the training of the policy it was given to, and ignores everything else. What happens is
told at reports: about a hundred times in each training run (a *stage*; distillers may have several
in one `fit`, and each is watched on its own). A callback draws no random numbers of the training:
with and without it the same weights come out, unless it stops the run or keeps other weights.

Where a policy is fitted inside another estimator, as in a grid search, every fit has files of its
own: ``log.csv`` becomes ``log-0-3.csv``, the numbers of its tasks in scikit-learn's task tree. Of
several processes that train together, the first one writes and measures.
"""

from skvdd.callbacks.checkpoint import Checkpoint
from skvdd.callbacks.loggers import CSVLogger, TensorBoardLogger
from skvdd.callbacks.monitors import EarlyStopping, RolloutMonitor

__all__ = ["CSVLogger", "Checkpoint", "EarlyStopping", "RolloutMonitor", "TensorBoardLogger"]
