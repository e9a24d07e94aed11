"""Imported once by the server that test ranks are forked from: what each of them would import anyway."""

import torch

from llmscale.engine.operations import use_prebuilt_operations

use_prebuilt_operations()
torch.set_num_threads(1)
