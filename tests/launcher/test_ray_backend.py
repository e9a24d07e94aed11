"""`cluster.kind=ray` as far as no Ray is needed: against a job server that runs nothing."""

import importlib.metadata
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from llmscale_launcher.backends.base import Earlier, JobRequest, SubmitError
from llmscale_launcher.backends.ray import RayBackend
from llmscale_launcher.backends.table import backend
from llmscale_launcher.job import JobRecord, write_whole
from llmscale_launcher.ray.jobs import JobServer, user_token
from llmscale_launcher.ray.local import find_local_ray, state_folder
from llmscale_launcher.ray.placement import Machine

from llmscale.config.schema import Config
from tests.launcher.fake_ray import FakeRay, fake_ray

TOKEN = "5e" * 32
VERSION = importlib.metadata.version("ray")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token and no local Ray of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)


@pytest.fixture
def ray() -> Iterator[FakeRay]:
    with fake_ray(VERSION) as found:
        yield found


def config(tmp_path: Path, **cluster: object) -> Config:
    return Config.model_validate(
        {"run": {"name": "mine", "root": tmp_path / "my runs"}, "cluster": {"kind": "ray", **cluster}}
    )


def request(tmp_path: Path, address: str, **cluster: object) -> JobRequest:
    made = config(tmp_path, ray=address, **cluster)
    made.run_folder.mkdir(parents=True, exist_ok=True)
    return JobRequest(made, made.run_folder, directory=tmp_path)


def problems(found: Config) -> dict[str, str]:
    return {problem.key: problem.message for problem in RayBackend().check(found)}


def test_submit_states_cancel(tmp_path: Path, ray: FakeRay) -> None:
    found = backend("ray")
    record = found.submit(request(tmp_path, ray.address))
    assert (record.kind, record.array_index) == ("ray", None)
    assert record.id.startswith("mine-")
    job = ray.jobs[record.id]
    assert job["entrypoint"] == f"/bin/bash '{tmp_path}/my runs/mine/job.sh'"
    assert job["runtime_env"]["env_vars"]["PYTHONPATH"] == str(tmp_path / "my runs" / "mine" / "code")
    assert int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600
    assert found.states([record])[record.key].state == "pending"
    job["status"] = "RUNNING"
    assert found.states([record])[record.key].state == "running"
    found.cancel(record)
    state = found.states([record])[record.key]
    assert (state.state, state.reason, state.exit_code) == ("ended", "stopped", None)
    job |= {"status": "FAILED", "driver_exit_code": 3}
    assert found.states([record])[record.key].exit_code == 3
    ray.jobs.clear()
    assert found.states([record])[record.key].state == "ended"


def test_one_question_for_all_jobs_of_a_ray(tmp_path: Path, ray: FakeRay) -> None:
    record = RayBackend().submit(request(tmp_path, ray.address))
    ray.asked.clear()
    records = [record, *(replace(record, id=f"other-{number}") for number in range(500))]
    assert len(RayBackend().states(records)) == 501
    assert ray.asked == ["GET /api/jobs/"]


def test_a_ray_that_does_not_answer_leaves_the_state_open(tmp_path: Path) -> None:
    with fake_ray(VERSION) as ray:
        record = RayBackend().submit(request(tmp_path, ray.address))
    state = RayBackend().states([record])[record.key]
    assert state.state == "unknown"
    assert state.reason is not None and "no Ray answers at" in state.reason
    assert state.is_live


def test_script_is_what_runs(tmp_path: Path, ray: FakeRay) -> None:
    asked = request(tmp_path, ray.address, python="/opt/python", environment={"NAME": "it's"})
    asked = replace(asked, after=(Earlier(tmp_path / "before", None), Earlier(tmp_path / "x", None, "ended")))
    script = RayBackend().script(asked)
    RayBackend().submit(asked)
    assert (asked.folder / "job.sh").read_text() == script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert script.splitlines()[-1] == (
        f"exec /opt/python -m llmscale cluster ray-driver '{asked.folder}' "
        f"--finished={tmp_path}/before --ended={tmp_path}/x"
    )
    assert """export NAME='it'"'"'s'""" in script


def test_check_refuses_what_cannot_work(tmp_path: Path, ray: FakeRay) -> None:
    assert problems(config(tmp_path, ray=ray.address)) == {}
    assert "http://head:8265" in problems(config(tmp_path, ray="ray://head:10001"))["cluster.ray.address"]
    ray.version = "1.0.0"
    assert "runs Ray 1.0.0" in problems(config(tmp_path, ray=ray.address))["cluster.ray.address"]
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    gone = problems(config(tmp_path, ray=f"http://127.0.0.1:{port}"))
    assert "no Ray answers" in gone["cluster.ray.address"]
    assert "placement=pack" in problems(config(tmp_path, nodes=2))["cluster.nodes"]
    assert problems(config(tmp_path, nodes=2, ray={"placement": "pack"})) == {}
    assert "cluster.container" in problems(config(tmp_path, container="image.sif"))


def test_without_ray_installed_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "llmscale[ray]" in problems(config(tmp_path))["cluster.kind"]


def test_token_from_where_ray_itself_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert user_token() == "home"
    (tmp_path / "file").write_text("named\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert user_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "value")
    assert user_token() == "value"


@pytest.mark.parametrize(("token", "said"), [(None, "asks for a token"), ("0" * 64, "does not take")])
def test_a_wrong_token_is_refused_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    with fake_ray(VERSION, TOKEN) as ray:
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        assert problems(config(tmp_path, ray=ray.address)) == {}
        if token is None:
            monkeypatch.delenv("RAY_AUTH_TOKEN")
        else:
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        message = problems(config(tmp_path, ray=ray.address))["cluster.ray.address"]
        assert said in message and "RAY_AUTH_TOKEN_PATH" in message and TOKEN not in message
        with pytest.raises(SubmitError, match=said):
            RayBackend().submit(request(tmp_path, ray.address))
        assert ray.jobs == {}


def test_what_the_job_server_says_is_passed_on(ray: FakeRay) -> None:
    server = JobServer(ray.address)
    server.submit("a", "true", {}, {})
    ray.jobs["a"]["logs"] = "said\n"
    assert server.logs("a") == "said\n"
    assert server.job("b") is None
    assert list(server.jobs()) == ["a"]
    ray.machines = ["ALIVE", "DEAD", "ALIVE"]
    assert server.machines() == [Machine("0", "10.0.0.0", 4, 1), Machine("2", "10.0.0.2", 4, 1)]
    with pytest.raises(SubmitError, match=r"refused \(500\): ValueError: what is that\?"):
        server._ask("POST", "/api/jobs/a/dance")


def test_a_job_server_that_is_not_ready_is_asked_again(ray: FakeRay) -> None:
    """A fresh Ray answers before it can take jobs."""
    ray.not_ready = 2
    JobServer(ray.address).submit("a", "true", {}, {})
    assert ray.asked == ["POST /api/jobs/"] * 3
    assert list(ray.jobs) == ["a"]


def test_a_local_ray_is_known_on_its_machine_only(tmp_path: Path) -> None:
    elsewhere = JobRecord("ray", "a", None, 0.0, {"address": "http://127.0.0.1:8265", "host": "other"})
    here = replace(elsewhere, id="b", cluster={**(elsewhere.cluster or {}), "host": socket.gethostname()})
    states = RayBackend().states([elsewhere, here])
    assert states["a"].state == "unknown" and "only other can reach" in (states["a"].reason or "")
    assert states["b"].state == "ended"
    with pytest.raises(SubmitError, match="only other can reach"):
        RayBackend().cancel(elsewhere)
    RayBackend().cancel(here)


def test_what_is_left_of_a_local_ray_that_has_died_is_none(tmp_path: Path) -> None:
    with fake_ray(VERSION, TOKEN) as ray:
        write_whole(state_folder() / "token", f"{TOKEN}\n")
        write_whole(state_folder() / "ray.json", json.dumps({"address": ray.address, "keeper": 1}))
        found = find_local_ray()
        assert found is not None and (found.address, found.token) == (ray.address, TOKEN)
        write_whole(state_folder() / "token", "another\n")
        assert find_local_ray() is None
        write_whole(state_folder() / "token", f"{TOKEN}\n")
    assert find_local_ray() is None
