"""Records of every format -> examples on disk: counts, shares, reuse, and what is refused."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.checks import check_data
from llmscale.data.corpus import share_of_documents
from llmscale.data.examples import ExampleSet
from llmscale.data.prepare import prepare_examples
from llmscale.data.tokenizer import open_encoder
from llmscale.runtime.describe import data_lines

RECORDS = [{"prompt": f"Number {n}?", "completion": f" It is {n}."} for n in range(50)]


def write_lines(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def config_of(folder: Path, *files: Path | str, **sections: Any) -> Config:
    return Config.model_validate(
        {
            "task": "sft",
            "tokenizer": str(folder),
            **sections,
            "data": {"train": [str(file) for file in files], **sections.get("data", {})},
            "train": {"sequence_length": 64, "validate_every": 5, **sections.get("train", {})},
        }
    )


def texts(tokenizer: Path, folder: Path) -> list[str]:
    encoder, examples = open_encoder(tokenizer), ExampleSet(folder)
    return [
        encoder.decode(examples[n].tokens.tolist(), skip_special_tokens=True) for n in range(len(examples))
    ]


def test_every_format_gives_the_same_examples(tmp_path: Path, chat_folder: Path):
    lines = write_lines(tmp_path / "records.jsonl", RECORDS)
    (tmp_path / "records.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "records.jsonl.zst").write_bytes(zstandard.compress(lines.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "records.parquet")
    datasets.Dataset.from_list(RECORDS).to_parquet(str(tmp_path / "hub" / "train.parquet"))
    sources = [
        *(tmp_path / f"records{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")),
        f"hf:{tmp_path / 'hub'}:train",
    ]
    config = config_of(chat_folder, *sources, data={"split": [1, 0, 0]}, train={"validate_every": None})
    summary = prepare_examples(config, tmp_path / "out")
    assert list(summary) == [f"train-{n}" for n in range(5)]
    wanted = [record["prompt"] + record["completion"] for record in RECORDS]
    for name in summary:
        assert texts(chat_folder, tmp_path / "out" / name) == wanted


def test_what_is_held_out_is_never_trained_on(tmp_path: Path, chat_folder: Path):
    file = write_lines(tmp_path / "records.jsonl", RECORDS)
    config = config_of(chat_folder, file, data={"split": [0.8, 0.2, 0]})
    prepare_examples(config, tmp_path / "out")
    train, held_out = (texts(chat_folder, tmp_path / "out" / name) for name in ("train-0", "validation-0"))
    assert (len(train), len(held_out)) == (40, 10) and not set(train) & set(held_out)
    numbers = share_of_documents(50, [0.8, 0.2, 0], "validation")
    assert held_out == [RECORDS[n]["prompt"] + RECORDS[n]["completion"] for n in numbers]
    named = config_of(chat_folder, file, data={"validation": [str(file)]})
    prepare_examples(named, tmp_path / "named")
    assert len(texts(chat_folder, tmp_path / "named" / "train-0")) == 50


def test_what_fits_is_reused_and_what_does_not_is_made_again(tmp_path: Path, chat_folder: Path):
    file = write_lines(tmp_path / "records.jsonl", RECORDS)
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}")

    def made(config: Config) -> tuple[bool, dict[str, Any]]:
        place = tmp_path / "out" / "train-0"
        before = place.stat().st_mtime_ns if place.is_dir() else None
        summary = prepare_examples(config, tmp_path / "out")
        return place.stat().st_mtime_ns != before, summary

    base = config_of(chat_folder, file)
    again, summary = made(base)
    assert again and made(base) == (False, summary)
    # What changes no example changes nothing here.
    assert not made(config_of(chat_folder, file, optimizer={"lr": 1e-5}, sft={"packing": False}))[0]
    for changed in (
        config_of(chat_folder, file, train={"sequence_length": 63}),
        config_of(chat_folder, file, sft={"learn": "all"}),
        config_of(chat_folder, file, sft={"too_long": "drop"}),
        config_of(chat_folder, file, sft={"chat_template": str(template)}),
        config_of(chat_folder, file, sft={"chat_template": "chatml"}),
        config_of(chat_folder, file, peft={"method": "prompt_tuning", "virtual_tokens": 3}),
        config_of(chat_folder, file, data={"split": [0.5, 0.5, 0]}),
        config_of(chat_folder, data={"train": [{"path": str(file), "fields": {"text": "prompt"}}]}),
    ):
        assert made(changed)[0], changed
        assert not made(changed)[0]
    made(base)
    write_lines(file, RECORDS[:-1])
    assert made(base)[0]
    (tmp_path / "out" / "train-0" / "info.json").write_text("{")
    assert made(base)[0]


def test_virtual_tokens_take_room(tmp_path: Path, chat_folder: Path):
    record = {"text": "a b c d e f g h"}
    file = write_lines(tmp_path / "records.jsonl", [record])
    whole = len(open_encoder(chat_folder).encode(record["text"]).ids) + 1
    sections: dict[str, Any] = {"data": {"split": [1, 0, 0]}, "train": {"validate_every": None}}
    for virtual in (1, 5):
        sections["peft"] = {"method": "prompt_tuning", "virtual_tokens": virtual}
        sections["train"]["sequence_length"] = whole - 1 + virtual - 1
        prepare_examples(config_of(chat_folder, file, **sections), tmp_path / "out")
        assert ExampleSet(tmp_path / "out" / "train-0").lengths.tolist() == [whole - 1]


def test_every_record_is_counted(tmp_path: Path, chat_folder: Path):
    bad = [{"question": 1}, {"text": ""}, {"prompt": "a", "completion": " b" * 100}]
    bad.append({"messages": [{"role": "user", "content": "a"}]})
    file = write_lines(tmp_path / "records.jsonl", [*RECORDS[:8], *bad])
    with file.open("ab") as lines:
        lines.write(b'\n{"text": \n\xff\xfe\n[1]\n')
    config = config_of(chat_folder, file, data={"split": [1, 0, 0]}, train={"validate_every": None})
    counts: Any = prepare_examples(config, tmp_path / "out")["train-0"]
    assert (counts["records"], counts["examples"]) == (15, 8)
    (line,) = data_lines({"train-0": counts})
    assert line == (
        "train-0: 8 examples of 15 records; left out 4 bad, 1 empty, 1 too long, 1 nothing learned"
    )
    assert counts["left_out"] == {"bad": 4, "empty": 1, "too_long": 1, "nothing_learned": 1, "identical": 0}
    assert [line.split(":")[0] for line in counts["lines"]["bad"]] == [
        "line 9",
        "line 14",
        "line 15",
        "line 16",
    ]
    assert "is not JSON" in counts["lines"]["bad"][1] and "UTF-8" in counts["lines"]["bad"][2]
    examples = ExampleSet(tmp_path / "out" / "train-0")
    assert examples.info["counts"] == counts and counts["tokens"] == int(examples.lengths.sum())
    assert counts["learned"] == sum(int(examples[n].learned.sum()) for n in range(8))


def test_mostly_unusable_records_are_refused(tmp_path: Path, chat_folder: Path):
    file = write_lines(tmp_path / "records.jsonl", [*RECORDS[:4], *[{"text": ""}] * 5])
    config = config_of(chat_folder, file, data={"split": [1, 0, 0]}, train={"validate_every": None})
    with pytest.raises(InputError, match="5 of 9 records cannot be trained on: 5 empty .line 5"):
        prepare_examples(config, tmp_path / "out")
    assert not (tmp_path / "out" / "train-0").exists() and not list((tmp_path / "out").iterdir())
    nothing = config_of(chat_folder, file, data={"split": [1, 0, 0]})
    write_lines(file, RECORDS)
    with pytest.raises(InputError, match="has no record for this split; see data.split"):
        prepare_examples(nothing, tmp_path / "out")


def test_damaged_files_are_refused(tmp_path: Path, chat_folder: Path):
    lines = write_lines(tmp_path / "records.jsonl", RECORDS).read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(lines)[:-20])
    (tmp_path / "no.parquet").write_bytes(b"no table")
    config = config_of(chat_folder, cut, tmp_path / "no.parquet", train={"validate_every": None})
    with pytest.raises(InputError) as error:
        prepare_examples(config, tmp_path / "out")
    assert [problem.key for problem in error.value.problems] == ["data.train.0.path", "data.train.1.path"]


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"data": {"train": []}}, "data.train = .*names no records"),
        ({"data": {"train": ["absent.jsonl"]}}, r"data.train.0.path = absent.jsonl: no such file"),
        ({"data": {"train": ["."]}}, "is a folder"),
        ({"data": {"train": [__file__]}}, "is no file of records"),
        ({"data": {"validation": ["absent.jsonl"]}}, "data.validation.0.path"),
        ({"sft": {"chat_template": "absent"}}, "sft.chat_template = absent: is none of plain"),
        ({"tokenizer": {"path": None}}, "tokenizer.path = None: is needed"),
    ],
)
def test_checks_before_any_rank_starts(
    sections: dict[str, Any], message: str, tmp_path: Path, chat_folder: Path
):
    file = write_lines(tmp_path / "records.jsonl", RECORDS)
    assert check_data(config_of(chat_folder, file)) == []
    (problem,) = check_data(config_of(chat_folder, file, **sections))
    assert re.search(message, str(problem)), problem


def test_fields_of_the_first_records_are_checked(tmp_path: Path, chat_folder: Path):
    file = write_lines(tmp_path / "records.jsonl", [{"question": "a", "answer": "b"}] * 3)
    (problem,) = check_data(config_of(chat_folder, file))
    assert (
        "3 of the first 3 records cannot be used: line 1: has the fields question, answer" in problem.message
    )
    fields = {"prompt": "question", "completion": "answer"}
    named = config_of(chat_folder, data={"train": [{"path": str(file), "fields": fields}]})
    assert check_data(named) == []


def test_records_of_which_nothing_is_learned_are_refused_before_any_rank_starts(
    tmp_path: Path, chat_folder: Path
):
    asked = {"messages": [{"role": "user", "content": "hello"}]}
    file = write_lines(tmp_path / "records.jsonl", [asked] * 3)
    (problem,) = check_data(config_of(chat_folder, file))
    assert "3 of the first 3 records" in problem.message and "sft.learn=all" in problem.message
    assert check_data(config_of(chat_folder, file, sft={"learn": "all"})) == []


def test_a_file_that_begins_with_long_records_is_not_refused(tmp_path: Path, chat_folder: Path):
    long = {"prompt": "a", "completion": "word " * 500}
    file = write_lines(tmp_path / "records.jsonl", [long] * 3)
    assert check_data(config_of(chat_folder, file)) == []


def test_checks_and_preparation_do_without_torch(tmp_path: Path, chat_folder: Path):
    code = "import llmscale.data.prepare, llmscale.data.chat.encode, llmscale.data.chat.checks, sys; "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
