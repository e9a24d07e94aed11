"""Classification of texts: cross-entropy over labels, at the last token of each text.

Shapes: D texts of the microbatch, L labels.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.objective import Objective
from llmscale.objectives.pooling import pooled_scores, targets_of_texts

MOST_CONFUSED = 200
"""With more labels there is no confusion matrix: it has the square of their number, summed in every step."""


class Classify(Objective):
    """One of several labels.

    Args:
        labels: their names, in the order of the scores.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        scores_DL = pooled_scores(output, batch)
        return F.cross_entropy(scores_DL, targets_of_texts(batch).long(), reduction="sum")

    def count(self, batch: Batch) -> float:
        return float(batch.loss_mask_BS.sum())

    @property
    def has_matrix(self) -> bool:
        return len(self.labels) <= MOST_CONFUSED

    @property
    def sum_count(self) -> int:
        return len(self.labels) * (len(self.labels) if self.has_matrix else 3)

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """Texts by their label and, within it, by the label they were given; or, of too many labels, how
        often each was right, how often it was there, and how often it was given."""
        labels = len(self.labels)
        given_D, true_D = pooled_scores(output, batch).argmax(-1), targets_of_texts(batch).long()
        if self.has_matrix:
            return torch.bincount(true_D * labels + given_D, minlength=labels**2)
        columns = (given_D[given_D == true_D], true_D, given_D)
        return torch.cat([torch.bincount(column, minlength=labels) for column in columns])

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """`accuracy`, `macro_f1` (the mean over labels), `f1` of each label, and `confusion`: a row a label,
        and in it how many of its texts were given each label.

        A label that is neither there nor given has an F1 of 0 and does not count in the mean.
        """
        labels = len(self.labels)
        rows = [list(sums[start : start + labels]) for start in range(0, len(sums), labels)]
        if self.has_matrix:
            right = [row[place] for place, row in enumerate(rows)]
            there, given = [sum(row) for row in rows], [sum(column) for column in zip(*rows)]
        else:
            right, there, given = rows
        # F1 is the harmonic mean of precision, right / given, and recall, right / there.
        f1 = [2 * r / (t + g) if t + g else 0.0 for r, t, g in zip(right, there, given)]
        met = [one for one, t, g in zip(f1, there, given) if t + g]
        found: dict[str, JsonValue] = {
            "accuracy": sum(right) / max(sum(there), 1.0),
            "macro_f1": sum(met) / max(len(met), 1),
            "f1": dict(zip(self.labels, f1)),
        }
        if self.has_matrix:
            found["confusion"] = [[int(count) for count in row] for row in rows]
        return found
