r"""
=============================
Training on several processes
=============================

Where the default process group of `torch.distributed` has several processes, they share every
minibatch of ``fit``: each takes a slice of the same rows, with the same random numbers, and the
gradients are averaged. The result is that of one process, up to rounding. Start the script with
PyTorch's launcher, on one machine with two processes

.. code-block:: bash

   python -m torch.distributed.run --standalone --nproc_per_node 2 train_on_several_processes.py

or on two machines with four GPUs each, on both of them:

.. code-block:: bash

   python -m torch.distributed.run --nnodes 2 --nproc_per_node 4 \
       --rdzv_backend c10d --rdzv_endpoint FIRST_HOST:29500 train_on_several_processes.py

Without the launcher it trains in one process. Larger minibatches are where it pays: small ones are
faster on one machine.
"""

# %%
# One line joins the processes, and each takes a GPU of its own, if there are any.
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.callback import ProgressBar

from skvdd import GaussianMoEPolicy, load
from skvdd.callbacks import Checkpoint
from skvdd.datasets import load_demonstrations

if dist.is_torchelastic_launched():
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()

# %%
# From here on every process runs the same lines with the same data. The first one shows the bar and
# writes the files; with a checkpoint, a training that has lost a process or a machine resumes
# there when it is started again.
folder = Path(tempfile.gettempdir())
states, actions, _ = load_demonstrations("avoiding").windows(window_size=5)
policy = GaussianMoEPolicy(
    window_size=5, hidden_size=64, max_iter=300, batch_size=1024, random_state=0
)
policy.set_callbacks(ProgressBar(), Checkpoint(folder / "skvdd-example.ckpt", every=100))
policy.fit(states, actions)
policy.save(folder / "skvdd-example.safetensors")

# %%
# Every process has the same policy. What is to happen once is done by one of them.
if not dist.is_initialized() or dist.get_rank() == 0:
    path = folder / "skvdd-example.safetensors"
    print(f"log-likelihood {load(path).score(states, actions):.3f} nats a decision")
    path.unlink()

if dist.is_initialized():
    dist.destroy_process_group()
