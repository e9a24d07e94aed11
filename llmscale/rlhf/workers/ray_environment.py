"""What Ray reads from the environment at the moment when it is imported. No import of Ray here."""

import os
import secrets


def prepare_ray_environment(is_on_a_ray: bool) -> None:
    """For a Ray of our own, if `RAY_ADDRESS` names none: nobody else gets in, and it listens on the loopback
    interface only.

    Args:
        is_on_a_ray: whether the run asks for one that is there (`cluster.kind=ray`). Else `RAY_ADDRESS` is of
            something else that its user does with Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not is_on_a_ray:
        os.environ.pop("RAY_ADDRESS", None)
    if not os.environ.get("RAY_ADDRESS"):
        # Else Ray's processes wait for everything else that runs here; ranks of other tasks do not.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Has Ray keep the address that it is given.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
