"""Links between agents: whole lines for those that know the token, nothing for anybody else."""

import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmscale.runtime.link import LARGEST_STRANGERS_LINE, Link, LinkServer, read_token

ADDRESS = "127.0.0.1"
TOKEN = "5e" * 32


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(ADDRESS, [0], TOKEN)
    yield made
    made.close()


def exchange(server: LinkServer, link: Link, seconds: float = 5.0) -> list[tuple[int, str]]:
    """Let both sides work until the server hears a line or the link has given up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        link.poll(time.monotonic())
        link.send("hello", time.monotonic())
        heard = server.poll(time.monotonic(), 0.01)
        if heard or link.trouble:
            return heard
    raise AssertionError("neither a line nor trouble")


def test_lines_go_both_ways_whatever_their_length(server: LinkServer) -> None:
    link = Link(ADDRESS, [server.port], TOKEN)
    ((peer, line), *_) = exchange(server, link)
    assert line == "hello"
    long = "ü" * 3_000_000
    server.send(peer, long)
    server.send(peer, "short")
    heard: list[str] = []
    deadline = time.monotonic() + 10
    while len(heard) < 2 and time.monotonic() < deadline:
        server.poll(time.monotonic(), 0.0)
        server.peers[peer].flush()
        heard += link.poll(time.monotonic())
    assert heard == [long, "short"]
    link.hang_up("done", 0.0)


def test_an_agent_of_another_run_is_not_heard(server: LinkServer) -> None:
    link = Link(ADDRESS, [server.port], "00" * 32)
    assert exchange(server, link) == []
    assert not link.ready and not server.peers


def test_an_agent_believes_no_stranger() -> None:
    """Another job's coordinator has the port: the next one is tried."""
    stranger, friend = LinkServer(ADDRESS, [0], "11" * 32), LinkServer(ADDRESS, [0], TOKEN)
    link = Link(ADDRESS, [stranger.port, friend.port], TOKEN)
    deadline = time.monotonic() + 10
    while not link.ready and time.monotonic() < deadline:
        link.poll(time.monotonic())
        assert stranger.poll(time.monotonic(), 0.0) == []
        friend.poll(time.monotonic(), 0.01)
    assert link.ready and friend.peers
    for closed in (stranger, friend):
        closed.close()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\xff\xfe" * 50 + b"\n",
        b"a" * (LARGEST_STRANGERS_LINE + 1),
        b"\n",
    ],
)
def test_a_stranger_gets_nothing(server: LinkServer, words: bytes) -> None:
    heard: list[bytes] = []

    def call() -> None:
        with socket.create_connection((ADDRESS, server.port), timeout=10) as connection:
            connection.sendall(words)
            while data := connection.recv(4096):
                heard.append(data)

    caller = threading.Thread(target=call)
    caller.start()
    deadline = time.monotonic() + 10
    while caller.is_alive() and time.monotonic() < deadline:
        assert server.poll(time.monotonic(), 0.01) == []
    caller.join(1)
    assert not caller.is_alive() and not server.peers
    # Only the challenge, which says nothing.
    assert len(b"".join(heard)) == 65


def test_who_does_not_speak_is_dropped(server: LinkServer) -> None:
    with socket.create_connection((ADDRESS, server.port)):
        deadline = time.monotonic() + 5
        while not server.peers and time.monotonic() < deadline:
            server.poll(time.monotonic(), 0.01)
        assert server.peers
        server.poll(time.monotonic() + 60, 0.0)
        assert not server.peers


def test_a_port_that_is_taken_is_passed_over(server: LinkServer) -> None:
    with socket.create_server((ADDRESS, 0)) as probe:
        free = probe.getsockname()[1]
    other = LinkServer(ADDRESS, [server.port, free], TOKEN)
    assert other.port == free
    with pytest.raises(OSError, match="no port to listen on"):
        LinkServer(ADDRESS, [server.port, free], TOKEN)
    other.close()


def test_the_token_is_one_for_all_and_nobody_elses(tmp_path: Path) -> None:
    found: list[str] = []
    readers = [threading.Thread(target=lambda: found.append(read_token(tmp_path))) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(set(found)) == 1 and len(found[0]) == 64 and len(found) == 8
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_words_for_a_peer_that_is_gone_reach_nobody_else(server: LinkServer) -> None:
    first = Link(ADDRESS, [server.port], TOKEN)
    ((gone, _), *_) = exchange(server, first)
    first.hang_up("done", 0.0)
    deadline = time.monotonic() + 5
    while server.peers and time.monotonic() < deadline:
        server.poll(time.monotonic(), 0.01)
    second = Link(ADDRESS, [server.port], TOKEN)
    ((other, _), *_) = exchange(server, second)
    server.send(gone, "for the first")
    server.send(other, "for the second")
    heard: list[str] = []
    while not heard and time.monotonic() < deadline:
        heard = second.poll(time.monotonic())
    assert heard == ["for the second"]
    second.hang_up("done", 0.0)
