"""The first thing that the rank server imports: its log, and the signals' flag.

A request to stop reaches the server too, which must live on, and may reach a rank in its first instant,
which must remember it. Handlers that are set here are inherited by every rank.
"""

import os
from pathlib import Path

from llmscale.runtime import stop_signal
from llmscale.runtime.output import SERVER_LOG, write_to

stop_signal.install()
if SERVER_LOG in os.environ:
    write_to(Path(os.environ.pop(SERVER_LOG)))
