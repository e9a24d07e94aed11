"""Imported once by the server that test ranks are forked from: what each of them would import anyway."""

import torch

torch.set_num_threads(1)
