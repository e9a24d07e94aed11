"""Contender: TRL's `DPOTrainer`."""

import copy
import tempfile
from collections.abc import Mapping

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from bench.dpo_workload import PreferenceWorkload, read_pairs
from bench.transformers_loop import build
from bench.trl_trainers import Counting, one_process, options_of
from tests.peers_preference import as_dataset
from tests.peers_trl import numbers_tokenizer


class CountingTrainer(Counting, DPOTrainer):
    def counts_of(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        rows, columns = inputs["input_ids"].shape
        # The last token of an answer is a label only.
        tokens = int(inputs["attention_mask"].sum()) - rows
        return {"pairs": rows // 2, "tokens": tokens, "computed": rows * columns}


def main() -> None:
    workload = PreferenceWorkload.from_command_line()
    torch.set_num_threads(workload.threads)
    one_process()
    model, is_precomputed = build(workload), workload.reference == "precomputed"
    with tempfile.TemporaryDirectory() as folder:
        CountingTrainer(
            model=model,
            ref_model=None if is_precomputed else copy.deepcopy(model),
            args=DPOConfig(precompute_ref_log_probs=is_precomputed, **options_of(workload, folder)),
            train_dataset=as_dataset(list(read_pairs(workload)), with_margin=False),
            processing_class=numbers_tokenizer(workload.vocabulary_size),
        ).train_by(workload.clock)


if __name__ == "__main__":
    main()
