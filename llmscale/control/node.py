"""The agent of a node: carries out the coordinator's orders, and says how its ranks are. No torch.

A pure state machine around a `Ranks`. It holds a lease: an agent that has heard nothing for a while, as when
the network is cut, ends its ranks by itself, before the coordinator counts the node as lost and starts new
ranks elsewhere. The lease runs from the moment at which the newest report that was answered was *sent*, so
it ends before the coordinator's patience does, however long messages take.
"""

from typing import Protocol

from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.control.messages import AgentState, Evidence, Failure, Order, Place, Report
from llmscale.control.watchdog import Beat


class Ranks(Protocol):
    """The rank processes of a node."""

    def open_store(self) -> int:
        """Open the store in which the ranks of all nodes find each other; returns its port."""
        ...

    def start(self, place: Place) -> None:
        """Start the ranks."""
        ...

    def kill(self) -> None:
        """End all ranks; none is left when this returns."""
        ...

    def ask_to_save(self) -> None:
        """Ask the ranks to save after their step, and to leave."""
        ...

    def poll(self) -> Failure | dict[int, int] | None:
        """A failure; or what each rank returned, when all are done; None while they are at work."""
        ...

    def beats(self) -> dict[int, Beat]:
        """How far each rank is, or was when it ended."""
        ...

    def examine(self) -> None:
        """Begin to look at what each rank is doing."""
        ...

    def evidence(self) -> tuple[Evidence, ...] | None:
        """What was seen; None while that is still going on."""
        ...


class NodeAgent:
    """Reports to the coordinator and follows its orders; `exit_code` when it is to leave."""

    def __init__(
        self,
        name: str,
        host: str,
        address: str,
        index: int,
        ranks: Ranks,
        fence_seconds: float,
        join_seconds: float,
        abandon_seconds: float,
        now: float,
    ) -> None:
        """
        Args:
            name: of this agent process and no other.
            address: where ranks of other nodes reach this node.
            index: the node's place, as the scheduler numbers them.
            fence_seconds: without an order for this long, the ranks are ended.
            join_seconds: how long to wait for the first order.
            abandon_seconds: without a further order for this long, the agent leaves with 75.
        """
        self.name = name
        self.host = host
        self.address = address
        self.index = index
        self.ranks = ranks
        self.fence_seconds = fence_seconds
        self.join_seconds = join_seconds
        self.abandon_seconds = abandon_seconds
        self.lease = now
        self.sent: dict[int, float] = {}
        self.number = 0
        self.order: Order | None = None
        self.former: set[str] = set()
        self.generation = 0
        self.state: AgentState = "idle"
        self.port = 0
        self.place: Place | None = None
        self.failure: Failure | None = None
        self.codes: dict[int, int] = {}
        self.signal: str | None = None
        self.asked_to_save = False
        self.examining = 0
        self.examined = 0
        self.evidence: tuple[Evidence, ...] = ()
        self.exit_code: int | None = None
        self.reason = ""

    def stop(self, signal_name: str) -> None:
        """A signal asks the run to stop."""
        self.signal = self.signal or signal_name

    def report(self, now: float) -> Report:
        """Everything there is to say; `now` is when it is sent."""
        self.number += 1
        self.sent[self.number] = now
        return Report(
            agent=self.name,
            host=self.host,
            address=self.address,
            index=self.index,
            number=self.number,
            coordinator=self.order.coordinator if self.order else "",
            order=self.order.number if self.order else 0,
            generation=self.generation,
            state=self.state,
            port=self.port,
            failure=self.failure,
            codes=self.codes,
            signal=self.signal,
            beats=self.ranks.beats() if self.state in ("running", "failed", "done") else {},
            examined=self.examined,
            evidence=self.evidence,
        )

    def receive(self, order: Order, now: float) -> None:
        """Carry out an order, unless a newer one is known."""
        if order.coordinator in self.former:
            return
        standing = self.order
        if standing is not None and standing.coordinator != order.coordinator:
            # Another coordinator knows nothing of these ranks.
            self.former.add(standing.coordinator)
            self._clear()
            self.generation, self.failure, standing = 0, None, None
        self._renew_lease(order.answers)
        if standing is not None and order.number <= standing.number:
            return
        self.order = order
        if order.kind == "wait":
            if self.state == "running":
                # The rank at fault may be here: another node's ranks have only complained of it sooner.
                self._look_after_ranks()
            self._clear()
        elif order.kind == "open":
            self._open(order)
        elif order.kind == "run":
            self._run(order)
        else:
            self._leave(order.exit_code, order.reason)

    def tick(self, now: float) -> None:
        """Look after the ranks and the lease."""
        if self.state == "running":
            self._look_after_ranks()
        if self.examining > self.examined:
            self._gather_evidence()
        silence = now - self.lease
        if silence > self.fence_seconds and self.state in ("running", "open"):
            cause = f"{self.host} heard nothing from the coordinator for {silence:.0f} s"
            self._fail(Failure(self._first_rank, self.host, 0, cause, None, "", (), "node lost"))
        if silence > (self.abandon_seconds if self.order else self.join_seconds):
            self._leave(EXIT_SAVED, f"no coordinator for {silence:.0f} s")

    def _open(self, order: Order) -> None:
        self._begin(order)
        self.port = self.ranks.open_store()
        self.state = "open"

    def _run(self, order: Order) -> None:
        if order.generation != self.generation or self.state == "open":
            port = self.port if order.generation == self.generation else 0
            self._begin(order)
            assert order.place is not None
            self.port, self.place = port, order.place
            self.ranks.start(order.place)
            self.state = "running"
        if self.state != "running":
            return
        if order.save and not self.asked_to_save:
            self.asked_to_save = True
            self.ranks.ask_to_save()
        if order.examine > self.examining:
            self.examining = order.examine
            self.ranks.examine()

    def _begin(self, order: Order) -> None:
        """Forget the generation before."""
        self._clear()
        self.generation = order.generation
        self.failure, self.codes, self.evidence = None, {}, ()
        self.asked_to_save = False
        self.examining = self.examined = 0

    def _clear(self) -> None:
        if self.state == "running":
            self.ranks.kill()
        self.state = "idle"

    def _look_after_ranks(self) -> None:
        found = self.ranks.poll()
        if isinstance(found, Failure):
            self._fail(found)
        elif found is not None:
            self.codes = found
            self.state = "done"

    def _fail(self, failure: Failure) -> None:
        self._clear()
        self.failure = failure
        self.state = "failed"

    def _gather_evidence(self) -> None:
        found = self.ranks.evidence() if self.state == "running" else ()
        if found is not None:
            self.evidence, self.examined = found, self.examining

    def _leave(self, exit_code: int, reason: str) -> None:
        self._clear()
        self.exit_code, self.reason = exit_code, reason

    def _renew_lease(self, answered: int) -> None:
        if answered in self.sent:
            self.lease = max(self.lease, self.sent[answered])
            self.sent = {number: then for number, then in self.sent.items() if number > answered}

    @property
    def _first_rank(self) -> int:
        return self.place.first_rank if self.place else 0
