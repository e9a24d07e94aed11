"""Imports that say nothing of use."""

import os
import warnings


def silence_import_warnings() -> None:
    """Megatron says of each library that it is missing, here and in processes to come."""
    warnings.filterwarnings("ignore", category=UserWarning)
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"
