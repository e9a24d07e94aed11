"""The Ray that `submit` starts on this machine: loopback only, behind a token, used again, gone when idle."""

import json
import re
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.ray_runs import RayPlace
from tests.cluster.waiting import wait_until
from tests.distributed.trainings import Run, assert_same_run

pytestmark = pytest.mark.cluster

ONE_NODE = ("cluster.nodes=1", "cluster.processes_per_node=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayPlace]:
    """Somebody's machine without a Ray; afterwards without one too."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "cache").mkdir()
    place = RayPlace.make(folder, {}, {"XDG_CACHE_HOME": str(folder / "cache")})
    yield place
    if (state(folder / "cache") / "ray.json").exists():
        keeper = psutil.Process(known(place)["keeper"])
        keeper.terminate()
        wait_until(lambda: not is_alive(keeper), "the local Ray is gone", 60)


def known(place: RayPlace) -> dict[str, Any]:
    return json.loads((state(place.place.folder / "cache") / "ray.json").read_text())


def state(cache: Path) -> Path:
    return cache / "llmscale" / "ray" / socket.gethostname()


def listeners() -> dict[str, str]:
    """Address and port of every listening socket -> what `ss` says of its process."""
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[3]: line for line in lines}


def keeper_and_its_children(place: RayPlace) -> set[int]:
    keeper = psutil.Process(known(place)["keeper"])
    return {keeper.pid, *(child.pid for child in keeper.children(recursive=True))}


def is_alive(process: psutil.Process) -> bool:
    """Asked of the process, as its number is given out again; a zombie is dead, and not every init reaps."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_submit_starts_one_that_listens_on_loopback_only(place: RayPlace, oracle: Run) -> None:
    before = listeners()
    submitted = place.submit("first", *ONE_NODE)
    submitted.wait_for_commit(3)
    own = keeper_and_its_children(place)
    new = {address: line for address, line in listeners().items() if address not in before}
    ours = {
        address: line for address, line in new.items() if own & set(map(int, re.findall(r"pid=(\d+)", line)))
    }
    for daemon in ("gcs_server", "raylet", "ray::Dashboard", "ray::RuntimeEnv"):
        assert any(daemon in line for line in ours.values()), new
    loopback = re.compile(r"(127\.|\[::1\]|\[::ffff:127\.)")
    assert [address for address in ours if not loopback.match(address)] == []
    submitted.wait_until(lambda: submitted.run.events("finished"), "it has finished", 120)
    assert_same_run(submitted.run, oracle)


@pytest.mark.parametrize("path", ["/api/version", "/api/jobs/", "/api/v0/nodes", "/nodes?view=summary"])
@pytest.mark.parametrize(("token", "status"), [(None, 401), ("0" * 64, 403)])
def test_without_the_token_it_tells_nothing(
    place: RayPlace, path: str, token: str | None, status: int
) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for method in ("GET", "POST", "DELETE"):
        request = urllib.request.Request(known(place)["address"] + path, method=method, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=10)
        assert refusal.value.code == status


def test_token_is_for_its_owner_only_and_in_no_command_line(place: RayPlace) -> None:
    folder = state(place.place.folder / "cache")
    token = (folder / "token").read_text()
    assert len(token) == 64
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lines: list[str] = []
    for pid in keeper_and_its_children(place):
        with suppress(FileNotFoundError):  # ended meanwhile
            lines.append(Path(f"/proc/{pid}/cmdline").read_text())
    assert lines and not any(token in line for line in lines)
    assert token not in (folder / "ray.log").read_text()


def test_the_next_submit_uses_it_and_its_end_leaves_nothing(place: RayPlace) -> None:
    before = known(place)
    keeper = psutil.Process(known(place)["keeper"])
    processes = [keeper, *keeper.children(recursive=True)]
    temporary = next(
        word.partition("=")[2]
        for child in keeper.children()
        for word in child.cmdline()
        if word.startswith("--temp-dir=")
    )
    assert Path(temporary).exists()
    submitted = place.submit("second", *ONE_NODE, "train.steps=20000")
    assert known(place) == before
    assert submitted.record["cluster"] == {"address": before["address"], "host": socket.gethostname()}
    submitted.wait_for_commit(3)
    keeper.terminate()
    wait_until(lambda: not any(map(is_alive, processes)), "all of its processes are gone", 60)
    submitted.wait_until(lambda: not submitted.agents_and_ranks(), "its runs are gone too", 30)
    assert not Path(temporary).exists()
    assert not (state(place.place.folder / "cache") / "ray.json").exists()
    assert "running" not in place.llmscale("status", "second", "--root", "runs").stdout


def test_submitted_again_after_its_end_the_run_goes_on(place: RayPlace) -> None:
    saved = place.place.run("second").committed_steps()[-1]
    again = place.submit("second", *ONE_NODE, "train.steps=20000", f"train.stop_at={saved + 6}")
    again.wait_until(lambda: again.run.events("finished"), "it has finished", 120)
    assert [event.step for event in again.run.events("resumed")] == [saved]
    assert again.run.last_step() == saved + 6


def test_it_ends_when_nobody_has_used_it_for_a_while(place: RayPlace, tmp_path: Path) -> None:
    state(tmp_path).mkdir(parents=True)
    (state(tmp_path) / "token").write_text("5e" * 32)
    idle = RayPlace(place.place, {"XDG_CACHE_HOME": str(tmp_path)})
    idle.llmscale("cluster", "ray-local", "--cpus=2", "--idle-seconds=1")
    assert {path.name for path in state(tmp_path).iterdir()} == {"token", "lock"}
