"""Settings that other libraries read from the environment when they are first imported."""

import os


def prepare_environment() -> None:
    """To be called by commands that import torch, before they do; what the user set stays.

    OpenMP's threads spin while they wait by default. Where a neighbour needs the cores too, each
    of torch's many small steps then waits for a thread that is not running: several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Libraries draw bars of their own otherwise, across ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
