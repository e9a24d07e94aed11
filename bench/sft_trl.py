"""Contender: TRL's `SFTTrainer`."""

import tempfile
from collections.abc import Mapping

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from bench.sft_workload import TuningWorkload, examples
from bench.transformers_loop import build
from bench.trl_trainers import Counting, one_process, options_of
from bench.tuning import Clock
from tests.peers_sft import as_dataset
from tests.peers_trl import numbers_tokenizer


class CountingTrainer(Counting, SFTTrainer):
    def counts_of(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Tokens that have a label to predict."""
        if "position_ids" in inputs:  # rows laid end to end, without padding
            return {"tokens": int((inputs["position_ids"] != 0).sum())}
        return {"tokens": int(inputs["attention_mask"].sum()) - len(inputs["input_ids"])}


def main() -> None:
    workload = TuningWorkload.from_command_line()
    torch.set_num_threads(workload.threads)
    one_process()
    with tempfile.TemporaryDirectory() as folder:
        CountingTrainer(
            model=build(workload),
            args=SFTConfig(packing=workload.packing, **options_of(workload, folder)),
            train_dataset=as_dataset(examples(workload)),
            processing_class=numbers_tokenizer(workload.vocabulary_size),
        ).train_by(Clock(workload.seconds))


if __name__ == "__main__":
    main()
