"""Lines of text between the agents of a run, over TCP, and only between those that know the run's token.

Each side proves that it knows the token without sending it: it answers the other's random challenge with
HMAC-SHA256 (RFC 2104) over challenge and its own role. Nothing here waits: sockets are read when there is
something to read, and what cannot be sent yet is kept.
"""

import contextlib
import hashlib
import hmac
import itertools
import secrets
import select
import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOKEN_NAME = ".token"

CHUNK = 65536
LARGEST_LINE = 64 * 2**20
LARGEST_STRANGERS_LINE = 256
HANDSHAKE_SECONDS = 5.0
RETRY_SECONDS = 0.5
SILENCE_SECONDS = 3.0
"""After this long without an answer an agent connects anew; a coordinator answers several times a second."""


class Closed(Exception):
    """The other side is gone, or is not who it should be."""


def read_token(run_folder: Path) -> str:
    """The secret that the agents of a run share; made by the first that asks."""
    path = run_folder / TOKEN_NAME
    if not path.exists():
        temporary = path.with_name(f"{TOKEN_NAME}.{secrets.token_hex(4)}")
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        # Of several that make one, the first wins.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
        temporary.unlink()
    return path.read_text().strip()


def proof(token: str, role: str, challenge: str) -> str:
    return hmac.new(token.encode(), f"{role}:{challenge}".encode(), hashlib.sha256).hexdigest()


@dataclass
class Lines:
    """A connection as lines in and lines out."""

    connection: socket.socket
    known: bool = False
    """The other side has proved itself."""
    challenge: str = field(default_factory=lambda: secrets.token_hex(32))
    since: float = 0.0
    incoming: bytes = b""
    outgoing: bytes = b""

    def send(self, line: str) -> None:
        """
        Raises:
            Closed: the other side is gone.
        """
        self.outgoing += line.encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        while self.outgoing:
            try:
                sent = self.connection.send(self.outgoing)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Closed(str(error)) from None
            self.outgoing = self.outgoing[sent:]

    def receive(self) -> list[str]:
        """Whole lines that have come.

        Raises:
            Closed: the other side is gone, or sends what is no line.
        """
        while True:
            try:
                data = self.connection.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                raise Closed(str(error)) from None
            if not data:
                raise Closed("closed by the other side")
            self.incoming += data
            if len(self.incoming) > (LARGEST_LINE if self.known else LARGEST_STRANGERS_LINE):
                raise Closed("sends more than a line")
        whole, end, self.incoming = self.incoming.rpartition(b"\n")
        try:
            return (whole + end).decode().splitlines()
        except UnicodeDecodeError:
            raise Closed("sends what is no text") from None

    def close(self) -> None:
        self.connection.close()


class LinkServer:
    """The coordinator's side."""

    def __init__(self, address: str, ports: Sequence[int], token: str) -> None:
        """Listen on `address`, at the first of `ports` that is free (0: any).

        Raises:
            OSError: none is.
        """
        self.token = token
        self.listener = _listen(address, ports)
        self.listener.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.peers: dict[int, Lines] = {}
        self.numbers = itertools.count(1)
        """Of peers. Not their descriptors, which the next connection gets again: what is meant for an agent
        that is gone must not reach another."""

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    def poll(self, now: float, seconds: float) -> list[tuple[int, str]]:
        """Lines that have come within `seconds` at most, each with the number of its peer."""
        lines: list[tuple[int, str]] = []
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.listener:
                self._accept(now)
                continue
            peer: int = key.data
            try:
                lines += [(peer, line) for line in self._receive(self.peers[peer])]
            except Closed:
                self.drop(peer)
        for peer, connection in list(self.peers.items()):
            if not connection.known and now - connection.since > HANDSHAKE_SECONDS:
                self.drop(peer)
        return lines

    def send(self, peer: int, line: str) -> None:
        """Send a line to a peer, if it is still there."""
        connection = self.peers.get(peer)
        if connection is None:
            return
        try:
            connection.send(line)
        except Closed:
            self.drop(peer)

    def drop(self, peer: int) -> None:
        connection = self.peers.pop(peer)
        self.selector.unregister(connection.connection)
        connection.close()

    def close(self) -> None:
        for peer in list(self.peers):
            self.drop(peer)
        self.selector.close()
        self.listener.close()

    def _accept(self, now: float) -> None:
        connection, _ = self.listener.accept()
        _prepare(connection)
        lines = Lines(connection, since=now)
        peer = next(self.numbers)
        self.peers[peer] = lines
        self.selector.register(connection, selectors.EVENT_READ, peer)
        self.send(peer, lines.challenge)

    def _receive(self, peer: Lines) -> list[str]:
        lines = peer.receive()
        if peer.known or not lines:
            return lines
        answer, _, challenge = lines.pop(0).partition(" ")
        if not hmac.compare_digest(answer.encode(), proof(self.token, "agent", peer.challenge).encode()):
            raise Closed("does not know the token")
        peer.known = True
        peer.send(proof(self.token, "coordinator", challenge))
        return lines


class Link:
    """An agent's side: connects, and connects again, to whoever knows the token at one of the addresses."""

    def __init__(self, host: str, ports: Sequence[int], token: str) -> None:
        self.host = host
        self.ports = list(ports)
        self.token = token
        self.turn = 0
        self.lines: Lines | None = None
        self.answered = False
        self.heard = 0.0
        """When something came last."""
        self.next_try = 0.0
        self.trouble = ""
        """Why there is no connection."""

    def poll(self, now: float) -> list[str]:
        """Lines that have come; connects where there is no connection."""
        if self.lines is None:
            if now >= self.next_try:
                self._connect(now)
            return []
        try:
            self.lines.flush()
            lines = self.lines.receive()
            if lines:
                self.heard = now
            if not self.lines.known:
                lines = self._shake_hands(self.lines, lines, now)
            elif now - self.heard > SILENCE_SECONDS:
                # A cut cable closes no connection.
                raise Closed(f"silent for {SILENCE_SECONDS:g} s")
        except Closed as error:
            self.hang_up(str(error), now)
            return []
        return lines

    @property
    def ready(self) -> bool:
        return self.lines is not None and self.lines.known

    def send(self, line: str, now: float) -> None:
        """Send a line, if there is a connection."""
        if self.lines is None or not self.lines.known:
            return
        try:
            self.lines.send(line)
        except Closed as error:
            self.hang_up(str(error), now)

    def wait(self, seconds: float) -> None:
        """Return when something comes, after `seconds` at the latest."""
        select.select([self.lines.connection] if self.lines else [], [], [], seconds)

    def hang_up(self, reason: str, now: float) -> None:
        """Let the connection go; `poll` makes another."""
        if self.lines is not None:
            self.lines.close()
        self.lines = None
        self.trouble = reason
        self.next_try = now + RETRY_SECONDS
        self.turn += 1

    def _connect(self, now: float) -> None:
        port = self.ports[self.turn % len(self.ports)]
        try:
            connection = socket.create_connection((self.host, port), timeout=2.0)
        except OSError as error:
            self.hang_up(f"{self.host}:{port}: {error}", now)
            return
        _prepare(connection)
        self.lines = Lines(connection, since=now)
        self.answered, self.heard = False, now

    def _shake_hands(self, connection: Lines, lines: list[str], now: float) -> list[str]:
        if now - connection.since > HANDSHAKE_SECONDS:
            raise Closed("does not answer")
        if lines and not self.answered:
            challenge = lines.pop(0)
            connection.send(f"{proof(self.token, 'agent', challenge)} {connection.challenge}")
            self.answered = True
        if lines:
            expected = proof(self.token, "coordinator", connection.challenge)
            if not hmac.compare_digest(lines.pop(0).encode(), expected.encode()):
                raise Closed("is no coordinator of this run")
            connection.known = True
        return lines


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listen(address: str, ports: Sequence[int]) -> socket.socket:
    trouble: OSError | None = None
    for port in ports:
        try:
            return socket.create_server((address, port), backlog=1024)
        except OSError as error:
            trouble = error
    raise OSError(f"no port to listen on at {address} among {list(ports)}: {trouble}")
