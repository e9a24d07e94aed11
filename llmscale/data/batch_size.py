"""Global batch size as a function of the samples consumed so far."""

from llmscale.config.schema import TrainSection


def global_batch_size_at(train: TrainSection, consumed_samples: int) -> int:
    """Sequences in the optimizer step that begins after `consumed_samples` samples.

    Without `train.batch_warmup` always `train.global_batch_size`. With it, as in Megatron: the samples
    of the warm-up are shared equally between the sizes start, start + increment, … below the full one.
    """
    warmup = train.batch_warmup
    if warmup is None or consumed_samples >= warmup.samples:
        return train.global_batch_size
    increments = (train.global_batch_size - warmup.start) // warmup.increment
    done = consumed_samples * increments // warmup.samples
    return min(warmup.start + done * warmup.increment, train.global_batch_size)
