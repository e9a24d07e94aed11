"""What libraries read from the environment when they are imported. No torch."""

import os


def prepare_environment(processes: int, threads: int | None) -> None:
    """Set it for this process and the ranks to come; call before the rank server starts.

    OpenMP reads its thread count once, when it is loaded: the machine's cores divided by the ranks, if
    `threads` is None. Elastic agents of several nodes must not share a store across restarts. Asking the
    driver library, not the CUDA runtime, whether there is a device keeps forked ranks able to use it.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads or max(1, cores // processes))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
