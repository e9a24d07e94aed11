"""llmscale: train language models, from one laptop CPU to a cluster."""

__version__ = "0.1.0"
