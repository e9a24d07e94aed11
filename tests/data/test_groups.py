"""Groups of documents on disk and in rows: whole, told apart, and each under a number of its own."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import Document, Example, ExampleSet, write_examples
from llmscale.data.preferences.mismatch import with_mismatches
from llmscale.data.prepare import prepare_examples
from llmscale.data.row import batch_of, empty_row

drawn = st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4), min_size=1, max_size=12)
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
WHOLE = 40


def made(lengths: list[list[int]]) -> list[Example]:
    """Tokens are all different, so that each can be told from any other; the second half is learned."""
    groups, token = [], 1
    for places, group in enumerate(lengths):
        tokens = np.arange(token, token + sum(group), dtype=np.int32)
        learned = np.concatenate([np.arange(length) >= length // 2 for length in group])
        documents = tuple(Document(length, role, places + role / 8) for role, length in enumerate(group))
        groups.append(Example(tokens, learned, documents=documents))
        token += sum(group)
    return groups


def written(folder: Path, groups: list[Example]) -> ExampleSet:
    place = folder / f"{len(list(folder.iterdir()))}"
    write_examples(groups, place, {})
    return ExampleSet(place)


def same(one: Example, other: Example) -> bool:
    arrays = np.array_equal(one.tokens, other.tokens) and np.array_equal(one.learned, other.learned)
    return arrays and (one.target, one.documents) == (other.target, other.documents)


@many
@given(lengths=drawn)
def test_what_is_written_is_read(lengths: list[list[int]], tmp_path: Path) -> None:
    groups = made(lengths)
    found = written(tmp_path, groups)
    assert len(found) == len(groups) and all(same(found[n], group) for n, group in enumerate(groups))
    numbers = [number for place in range(len(found)) for number in found.document_numbers(place)]
    assert numbers == list(range(found.document_count)) and found.document_count == sum(map(len, lengths))
    assert found.document_counts.tolist() == list(map(len, lengths))


@many
@given(lengths=drawn, virtual=st.integers(0, 2), packing=st.booleans())
def test_rows_hold_whole_groups(
    lengths: list[list[int]], virtual: int, packing: bool, tmp_path: Path
) -> None:
    found = written(tmp_path, made(lengths))
    references = -np.arange(found.document_count, dtype=np.float64)
    rows = ExampleRows(found, WHOLE, "seed", virtual, packing, references)
    seen: list[tuple[int, ...]] = []
    for number in range(rows.samples_per_epoch):
        batch = batch_of([rows.sample(0, number), empty_row(WHOLE)])
        seen += told_of_row(batch, found, virtual)
        assert batch.group_BL is not None and (batch.group_BL[1] == -1).all()
        assert batch.reference_BL is not None and batch.reference_BL[1].isnan().all()
        assert batch.document_BL is not None and (batch.document_BL[1] == -1).all()
    assert sorted(seen) == [tuple(found.document_numbers(place)) for place in range(len(found))]


def told_of_row(batch: Any, found: ExampleSet, virtual: int) -> list[tuple[int, ...]]:
    """The numbers of the documents of each group in the first row, all of whose fields are looked at."""
    groups: dict[int, list[int]] = {}
    columns = zip(*(getattr(batch, f"{name}_BL")[0].tolist() for name in FIELDS), strict=True)
    start, tokens = 0, [*tokens_of(found)]
    for length, (group, role, margin, reference, document) in zip(batch.document_lengths[0], columns):
        expected, learned, told = tokens[document]
        assert batch.tokens_BS[0, start + virtual : start + length].tolist() == expected[:-1]
        assert (
            batch.loss_mask_BS[0, start : start + length].bool().tolist()
            == [
                *[False] * virtual,
                *learned,
            ][1:]
        )
        assert batch.position_ids_BS[0, start : start + length].tolist() == list(range(length))
        assert (role, margin, reference) == (told.role, told.margin, -document)
        groups.setdefault(group, []).append(document)
        start += length
    assert [*groups] == list(range(len(groups))) and not batch.loss_mask_BS[0, start:].any()
    return [tuple(documents) for documents in groups.values()]


FIELDS = ("group", "role", "margin", "reference", "document")


def tokens_of(found: ExampleSet):
    """Tokens, learned ones and description of each document by its number."""
    for place in range(len(found)):
        group, start = found[place], 0
        for document in group.documents:
            part = slice(start, start + document.length)
            yield group.tokens[part].tolist(), group.learned[part].tolist(), document
            start += document.length


def test_rows_without_a_reference_say_so(tmp_path: Path) -> None:
    rows = ExampleRows(written(tmp_path, made([[3, 4]])), WHOLE, "", 0, packing=True)
    batch = batch_of([rows.sample(0, 0)])
    assert batch.reference_BL is not None and batch.reference_BL.isnan().all()
    assert batch.reference_BL.dtype == torch.float64 and batch.targets_BL is None
    assert batch_of([empty_row(WHOLE)]).group_BL is None


def test_a_group_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an example of 8 tokens, and a row has 7"):
        ExampleRows(written(tmp_path, made([[5, 5]])), 7, "", 0, packing=True)


def test_the_content_is_that_of_the_documents(tmp_path: Path) -> None:
    one, same_again, other = (written(tmp_path, made([[3, size]])) for size in (4, 4, 5))
    [group] = made([[3, 4]])
    cut_otherwise = Example(group.tokens, group.learned, documents=(Document(4), Document(3, 1)))
    unlearned = Example(group.tokens, ~group.learned, documents=group.documents)
    assert one.content == same_again.content and len(one.content) == 64
    others = [other.content, written(tmp_path, [cut_otherwise]).content]
    assert len({one.content, *others, written(tmp_path, [unlearned]).content}) == 4


def judged(prompts: list[int], answers: list[int]) -> list[Example]:
    """Prompts by number, 10 and more; answers are 100 and more. Every second is right."""
    return [
        Example(
            np.array([*[prompt] * 3, *range(answer, answer + 4)], np.int32),
            np.array([False] * 3 + [True] * 4),
            float(place % 2),
            (Document(7),),
        )
        for place, (prompt, answer) in enumerate(zip(prompts, answers))
    ]


def test_a_mismatch_is_the_prompt_with_the_answer_to_another(tmp_path: Path) -> None:
    prompts = [10 + n // 3 for n in range(30)]  # three answers to each
    alone = written(tmp_path, judged(prompts, [100 * (1 + n) for n in range(30)]))
    both = [*with_mismatches(alone, 64, 0, seed=3)]
    others = []
    for one, group in zip((alone[n] for n in range(30)), both, strict=True):
        assert [document.role for document in group.documents] == [0, 1] and group.target == one.target
        assert group.tokens[:7].tolist() == one.tokens.tolist()
        assert group.tokens[7:10].tolist() == one.tokens[:3].tolist()
        assert group.learned.tolist() == [*one.learned, *one.learned]
        other = int(group.tokens[10]) // 100 - 1
        assert group.tokens[10:].tolist() == alone[other].tokens[3:].tolist()
        assert prompts[other] != one.tokens[0]
        others.append(other)
    again = [*with_mismatches(alone, 64, 0, seed=3)]
    assert all(same(one, other) for one, other in zip(both, again))
    assert any(not same(one, other) for one, other in zip(both, with_mismatches(alone, 64, 0, seed=4)))
    assert len({*others}) > 15, "not the same answer to all"


def test_a_mismatch_is_cut_where_the_row_ends(tmp_path: Path) -> None:
    alone = written(tmp_path, judged([10, 11], [100, 200]))
    for row in (10, 11, 12, 20):
        for group in with_mismatches(alone, row, 0, seed=0):
            used = len(group.tokens) - 2
            assert used == min(row, 12) and group.learned[7:].any()
    for group in with_mismatches(alone, 14, 2, seed=0):
        assert len(group.tokens) - 2 + 4 == 14
    one_prompt = written(tmp_path, judged([10, 10], [100, 200]))
    assert [int(group.tokens[10]) for group in with_mismatches(one_prompt, 20, 0, 0)] == [200, 100]
    with pytest.raises(ValueError, match="a single record"):
        next(with_mismatches(written(tmp_path, judged([10], [100])), 20, 0, 0))


def config_of(tokenizer: Path, file: Path, **sections: Any) -> Config:
    data = {"train": [{"path": file}], "split": [1, 0, 0]}
    train = {"sequence_length": 64}
    return Config.model_validate(
        {"task": "dpo", "tokenizer": {"path": tokenizer}, "data": data, "train": train, **sections}
    )


def test_prepared_once_under_one_name(tmp_path: Path, chat_folder: Path) -> None:
    records = [{"prompt": f"{n}?", "chosen": f" {n}!", "rejected": " no"} for n in range(5)]
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "data"
    file.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"prompt": 1}]))
    counts: Any = prepare_examples(config_of(chat_folder, file), folder)["train-0"]
    assert (counts["records"], counts["examples"], counts["left_out"]["bad"]) == (6, 5, 1)
    made_at = (folder / "train-0" / "info.json").stat().st_mtime_ns
    content = ExampleSet(folder / "train-0").content
    prepare_examples(config_of(chat_folder, file, dpo={"loss": "ipo"}), folder)
    assert (folder / "train-0" / "info.json").stat().st_mtime_ns == made_at, "nothing was made again"
    os.utime(file, ns=(1, 1))
    prepare_examples(config_of(chat_folder, file), folder)
    assert ExampleSet(folder / "train-0").content == content, "of the same records the same is made"
    prepare_examples(config_of(chat_folder, file, task="reward"), folder)
    assert ExampleSet(folder / "train-0").content != content


def test_prepared_with_mismatches(tmp_path: Path, chat_folder: Path) -> None:
    records = [{"prompt": f"{n}?", "completion": f" {n}!", "label": n % 2 == 0} for n in range(6)]
    file, folder = tmp_path / "judged.jsonl", tmp_path / "data"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare_examples(config_of(chat_folder, file, dpo={"loss": "kto"}), folder)
    found = ExampleSet(folder / "train-0")
    assert found.document_counts.tolist() == [2] * 6 and sorted(p.name for p in folder.iterdir()) == [
        "train-0"
    ]
    rows = ExampleRows(found, 64, "", 0, packing=True)
    batch = batch_of([rows.sample(0, 0)])
    assert batch.targets_BL is not None and batch.role_BL is not None
    assert (batch.targets_BL.isnan() == (batch.role_BL == 1)).all()
    contents = []
    for seed in (1, 2):
        train = {"sequence_length": 64, "seed": seed, "validate_every": 1}
        data = {"train": [str(file)], "validation": [str(file)]}
        prepare_examples(config_of(chat_folder, file, dpo={"loss": "kto"}, train=train, data=data), folder)
        contents.append([ExampleSet(folder / f"{split}-0").content for split in ("train", "validation")])
    assert contents[0][0] != contents[1][0] and contents[0][1] == contents[1][1]
    shutil.rmtree(folder / "validation-0")
    file.write_text(json.dumps(records[0]) + "\n")
    with pytest.raises(InputError, match="a single record"):
        prepare_examples(config_of(chat_folder, file, dpo={"loss": "kto"}), folder)
    assert not [*folder.iterdir()], "nothing half-made is left"
