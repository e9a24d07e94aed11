"""The text that tells what a model forgets: of corpora that it knew, documents that nothing is trained on."""

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.blend import Blend, ShuffledCorpus
from llmscale.data.corpus import CorpusDamaged, read_index, share_of_documents
from llmscale.data.loader import VALIDATION_SEED, BatchSource


def forgetting_source(config: Config, replica: int, replicas: int) -> BatchSource | None:
    """The validation share (`data.split`) of the corpora in `data.forgetting`; None where none is named.

    Raises:
        InputError: a corpus is damaged or has no document in that share.
    """
    entries = config.data.forgetting
    if not entries or config.train.validate_every is None:
        return None
    corpora: list[ShuffledCorpus] = []
    problems: list[Problem] = []
    for place, entry in enumerate(entries):
        try:
            count = len(read_index(entry.path).lengths)
            documents = share_of_documents(count, config.data.split, "validation")
            order = f"{VALIDATION_SEED}/forgetting/{place}"
            length = config.train.sequence_length
            corpora.append(ShuffledCorpus(entry.path, documents, length, order, keep_rest=True))
        except (CorpusDamaged, ValueError) as error:
            problems.append(Problem(f"data.forgetting.{place}.path", entry.path, str(error)))
    if problems:
        raise InputError(problems)
    blend = Blend(corpora, [entry.weight for entry in entries])
    return BatchSource(config, "validation", replica, replicas, blend)
