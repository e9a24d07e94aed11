"""What Ray reads from the environment at the moment when it is imported. No import of Ray here."""

import os
import secrets


def prepare_ray_environment() -> None:
    """For a Ray of our own, if `RAY_ADDRESS` names none: nobody else gets in, and it listens on the loopback
    interface only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Has Ray keep the address that it is given.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
