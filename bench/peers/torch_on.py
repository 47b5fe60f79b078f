"""How every peer begins with PyTorch."""

import os


def torch_on(threads):
    """PyTorch and transformers on so many threads, without the network and with the same random numbers each time."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["HF_HUB_OFFLINE"] = "1"

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return torch, transformers
