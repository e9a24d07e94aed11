"""`llmscale data label` against an endpoint that is slow, refuses, cuts its answers, and dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmscale.commands.data import app
from llmscale.config.problems import InputError
from llmscale.data.preferences.records import read_answers
from tests.data.label.fake_endpoint import FakeEndpoint, serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is on this machine, whatever stands between it and others."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


TEMPLATE = "{{ constitution | join(' ') }}\nQ: {{ prompt }}\n[A] {{ first }}\n[B] {{ second }}"


def longer(question: str) -> tuple[str, None]:
    """A judge that likes long answers."""
    first, second = question.split("\n[A] ")[1].split("\n[B] ")
    return "AB"[len(second) > len(first)] if len(first) != len(second) else "C", None


def records(count: int) -> list[dict[str, Any]]:
    """The human prefers the longer answer, but for every fourth record."""
    made = []
    for number in range(count):
        long, short = f"a long answer to {number}", f"short {number}"
        chosen, rejected = (short, long) if number % 4 == 3 else (long, short)
        made.append({"prompt": f"question {number}", "chosen": chosen, "rejected": rejected})
    return made


def write_config(folder: Path, url: str, lines: list[dict[str, Any]], **more: Any) -> Path:
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    limits = {"concurrency": 4, "retries": 3, "longest_wait_seconds": 1.0, "timeout_seconds": 5.0}
    judge = {
        "endpoint": url,
        "name": "judge",
        "template": TEMPLATE,
        "limits": limits | more.pop("limits", {}),
    }
    tree = {
        "records": str(folder / "records.jsonl"),
        "output": str(folder / "out"),
        "judge": judge | more.pop("judge", {}),
    } | more
    (folder / "label.yaml").write_text(json.dumps(tree))  # which is YAML too
    return folder / "label.yaml"


def label(config: Path, *overrides: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["label", str(config), *overrides], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def card(folder: Path) -> Mapping[str, Any]:
    return json.loads((folder / "out" / "card.json").read_bytes())


def test_pairs_are_judged_in_both_orders(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer)) as server:
        label(write_config(tmp_path, server.url, records(8), constitution=["Be long."]))
    assert len(server.bodies) == 16 and set(server.paid.values()) == {1}
    assert all("Be long." in asked for asked in server.paid)
    preferences = lines(tmp_path / "out" / "preferences.jsonl")
    assert [line["record"] for line in preferences] == list(range(1, 9))
    for number, line in enumerate(preferences):
        assert line["prompt"] == f"question {number}"
        assert (line["chosen"], line["rejected"]) == (f"a long answer to {number}", f"short {number}")
        assert line["human"] == ("rejected" if number % 4 == 3 else "chosen")
        trained_on = read_answers(line, {}, with_margin=False).answers
        assert [answer.said for answer in trained_on] == [line["chosen"], line["rejected"]]
    assert (tmp_path / "out" / "ties.jsonl").read_text() == ""
    found = card(tmp_path)
    assert found["agreement"]["accuracy"] == 0.75 and found["position"]["first_chosen"] == 0.5
    assert found["position"]["consistent"] == 1 and found["longer_chosen"] == 1
    page = (tmp_path / "out" / "card.md").read_text()
    assert "75.0 %" in page and "1. Be long." in page


def test_a_judge_that_looks_at_places_makes_ties(tmp_path: Path) -> None:
    with serving(FakeEndpoint(lambda _: ("A", None))) as server:
        label(write_config(tmp_path, server.url, records(6)))
    assert (tmp_path / "out" / "preferences.jsonl").read_text() == ""
    ties = lines(tmp_path / "out" / "ties.jsonl")
    assert len(ties) == 6 and all(tie["probabilities"] == [0.5, 0.5] for tie in ties)
    assert all(len(read_answers(tie, {}, with_margin=False).answers) == 1 for tie in ties), "none is the best"
    found = card(tmp_path)
    assert found["position"] | {"verdicts": 0} == {
        "verdicts": 0, "first_chosen": 1.0, "consistent": 0.0, "always_first": 6, "always_second": 0,
    }  # fmt: skip
    assert found["agreement"]["decided"] == 0 and found["agreement"]["kappa"] == 0


def test_log_probabilities_are_asked_for_and_used(tmp_path: Path) -> None:
    def unsure(question: str) -> tuple[str, dict[str, float]]:
        text, _ = longer(question)
        return text, {text: -0.5, "AB"["AB".index(text) - 1]: -1.5, " C": -3.0}

    with serving(FakeEndpoint(unsure)) as server:
        label(write_config(tmp_path, server.url, records(3)))
    assert all(body["logprobs"] and body["top_logprobs"] for body in server.bodies)
    for line in lines(tmp_path / "out" / "preferences.jsonl"):
        # e^-0.5, e^-1.5 and e^-3 over their sum; the tie counts half
        assert line["probability"] == pytest.approx((0.606531 + 0.049787 / 2) / 0.879448, abs=1e-5)
    assert card(tmp_path)["graded"] == 1


FAULTS = ("429 0.2", "cut", "dies", "short", "503", "slow", "429", "500")


def test_whatever_goes_wrong_is_tried_again(tmp_path: Path) -> None:
    def faults(number: int) -> str | None:
        return FAULTS[number // 2] if number % 2 == 0 and number // 2 < len(FAULTS) else None

    config = write_config(tmp_path, "", records(10), limits={"timeout_seconds": 2.0, "retries": 6})
    with serving(FakeEndpoint(longer, faults, seconds=0.02)) as server:
        label(config, f"judge.endpoint={server.url}")
    assert len(server.bodies) == 20 + len(FAULTS)
    assert len(server.paid) == 20 and set(server.paid.values()) == {1}
    assert len(lines(tmp_path / "out" / "preferences.jsonl")) == 10
    assert 1 < server.most_under_way <= 4


def test_retry_after_holds_all_back(tmp_path: Path) -> None:
    config = write_config(tmp_path, "", records(2), limits={"concurrency": 1})
    with serving(FakeEndpoint(longer, lambda number: "429 0.9" if number == 0 else None)) as server:
        label(config, f"judge.endpoint={server.url}")
    assert server.times[1] - server.times[0] >= 0.9


def test_a_rate_is_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path, "", records(3), limits={"requests_per_minute": 600})
    with serving(FakeEndpoint(longer)) as server:
        label(config, f"judge.endpoint={server.url}")
    assert server.times[-1] - server.times[0] >= 0.45  # five spaces of 0.1 s, but for the clock


def test_a_dead_endpoint_ends_the_command_and_nothing_is_lost(tmp_path: Path) -> None:
    config = write_config(tmp_path, "", records(5), limits={"retries": 1, "concurrency": 1})
    with serving(FakeEndpoint(longer, lambda number: "dies" if number >= 4 else None)) as server:
        output = label(config, f"judge.endpoint={server.url}", exit_code=1)
        assert "2 tries failed" in output
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.jsonl"]
        server.faults = lambda _: None
        label(config, f"judge.endpoint={server.url}")
    assert len(server.paid) == 10 and set(server.paid.values()) == {1}


def test_a_budget_ends_the_command_and_more_of_it_goes_on(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer)) as server:
        config = write_config(tmp_path, server.url, records(5), limits={"requests": 3})
        assert "budget of 3 requests is spent" in label(config, exit_code=75)
        assert len(server.bodies) == 3
        label(config, exit_code=75)
        assert len(server.bodies) == 3, "what was spent before counts"
        assert "tokens" in label(
            config, "judge.limits.requests=null", "judge.limits.tokens=200", exit_code=75
        )
        assert 3 <= len(server.bodies) < 10
        label(config, "judge.limits.requests=10")
    assert len(server.paid) == 10 and set(server.paid.values()) == {1}


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "s3cret-key")
    with serving(FakeEndpoint(longer, lambda number: "401" if number == 0 else None)) as server:
        config = write_config(
            tmp_path, server.url, records(2), judge={"key_variable": "A_KEY"}, limits={"concurrency": 1}
        )
        assert "s3cret" not in label(config, exit_code=1)
        label(config)
    assert all(headers["Authorization"] == "Bearer s3cret-key" for headers in server.headers)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 7 and not any(b"s3cret" in path.read_bytes() for path in files)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer, lambda _: "moved")) as server:
        assert "302" in label(write_config(tmp_path, server.url, records(1)), exit_code=1)
    assert len(server.bodies) == 2  # both orders, under way at once


def test_a_refused_question_is_left_out(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer, lambda number: "400" if number == 2 else None)) as server:
        label(write_config(tmp_path, server.url, records(4), limits={"concurrency": 1}))
    assert len(lines(tmp_path / "out" / "preferences.jsonl")) == 3
    assert [line["record"] for line in lines(tmp_path / "out" / "left_out.jsonl")] == [2]


def test_what_is_refused_again_does_not_keep_the_command_from_its_end(tmp_path: Path) -> None:
    refused = range(2, 8)
    with serving(FakeEndpoint(longer, lambda number: "400" if number in refused else None)) as server:
        config = write_config(tmp_path, server.url, records(4), limits={"concurrency": 1})
        label(config)
        server.faults = lambda _: "422"
        label(config)
    assert len(server.bodies) == 8 + 6
    assert len(lines(tmp_path / "out" / "left_out.jsonl")) == 3


def test_a_wrong_judge_is_told_before_candidates_are_paid_for(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer)) as server:
        candidates = {"endpoint": server.url, "name": "writer"}
        config = write_config(tmp_path, server.url, [{"prompt": "x"}], candidates=candidates)
        with pytest.raises(InputError, match="judge.model = nowhere: no such run or checkpoint"):
            label(config, "judge.endpoint=null", "judge.model=nowhere")
    assert server.bodies == [] and not (tmp_path / "out").exists()


def test_when_all_are_refused_the_command_ends(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer, lambda _: "400")) as server:
        output = label(
            write_config(tmp_path, server.url, records(50), limits={"concurrency": 1}), exit_code=1
        )
    assert "was refused" in output and len(server.bodies) == 5


def test_candidates_are_sampled(tmp_path: Path) -> None:
    def both(question: str) -> tuple[str, None]:
        if "[A]" in question:
            return longer(question)
        with server.lock:
            return (
                f"{question}, said {'again ' * sum(body['model'] == 'writer' for body in server.bodies)}",
                None,
            )

    asked = [{"prompt": f"question {number}"} for number in range(4)]
    with serving(FakeEndpoint(both)) as server:
        candidates = {"endpoint": server.url, "name": "writer", "count": 3, "limits": {"concurrency": 1}}
        label(write_config(tmp_path, server.url, asked, candidates=candidates))
    assert sum(body["model"] == "writer" for body in server.bodies) == 12
    preferences = lines(tmp_path / "out" / "preferences.jsonl")
    assert len(preferences) == 4 * 3
    assert all(len(line["chosen"]) > len(line["rejected"]) for line in preferences)
    assert card(tmp_path)["costs"]["candidates"]["requests"] == 12


COMMAND = "import sys; from llmscale.cli import main; sys.argv[0] = 'llmscale'; main()"


def start(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", COMMAND, "data", "label", str(config)])


def wait_for(server: FakeEndpoint, answers: int) -> None:
    until = time.monotonic() + 60
    while sum(server.paid.values()) < answers:
        assert time.monotonic() < until, "the command asks nothing"
        time.sleep(0.005)


def test_killed_again_and_again_each_answer_is_paid_for_once(tmp_path: Path) -> None:
    """What was under way at a kill is the exception: nobody was there to hear the answer."""
    with serving(FakeEndpoint(longer, seconds=0.05)) as server:
        config = write_config(tmp_path, server.url, records(30))
        kept: set[str] = set()
        for kill in range(2):
            process = start(config)
            wait_for(server, 15 * (kill + 1))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not (tmp_path / "out" / "preferences.jsonl").exists()
            kept = set((tmp_path / "out" / "answers.jsonl").read_text().splitlines())
        with (tmp_path / "out" / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "abc", "of": "jud')  # a line that a power cut has cut
        label(config)
    answers = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 60 and kept <= set(answers) and len(kept) >= 20
    assert len({json.loads(line)["key"] for line in answers}) == 60
    again = [count for count in server.paid.values() if count > 1]
    assert len(again) <= 2 * 4 and sum(server.paid.values()) <= 60 + 2 * 4, "more than was under way"
    assert len(lines(tmp_path / "out" / "preferences.jsonl")) == 30


def test_a_signal_lets_what_is_under_way_finish(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer, seconds=0.05)) as server:
        config = write_config(tmp_path, server.url, records(30))
        process = start(config)
        wait_for(server, 10)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert len(lines(tmp_path / "out" / "answers.jsonl")) == sum(server.paid.values()) < 60
        label(config)
    assert len(server.paid) == 60 and set(server.paid.values()) == {1}


def test_two_commands_do_not_share_an_output(tmp_path: Path) -> None:
    with serving(FakeEndpoint(longer, seconds=0.3)) as server:
        config = write_config(tmp_path, server.url, records(20))
        process = start(config)
        wait_for(server, 1)
        with pytest.raises(InputError, match="another command is labelling"):
            label(config)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 75
