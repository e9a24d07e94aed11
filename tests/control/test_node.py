"""What an agent makes of orders that come at the wrong moment."""

from llmscale.control.messages import Evidence, Failure, Order, Place
from llmscale.control.node import NodeAgent
from llmscale.control.watchdog import Beat

KILLED = Failure(1, "host", 7, "killed by SIGKILL", None, "rank-1.log", (), "signal")
PLACE = Place(1, 2, 1, 1, 2, "10.0.0.1", 1234, 0)


class FakeRanks:
    """Ranks whose next word a test decides."""

    def __init__(self) -> None:
        self.word: Failure | dict[int, int] | None = None
        self.running = False

    def open_store(self) -> int:
        return 1234

    def start(self, place: Place) -> None:
        self.running = True

    def kill(self) -> None:
        self.running = False

    def ask_to_save(self) -> None:
        """They take no notice."""

    def poll(self) -> Failure | dict[int, int] | None:
        return self.word

    def beats(self) -> dict[int, Beat]:
        return {}

    def examine(self) -> None:
        """There is nothing to see."""

    def evidence(self) -> tuple[Evidence, ...] | None:
        return ()


def running_agent() -> tuple[NodeAgent, FakeRanks]:
    ranks = FakeRanks()
    agent = NodeAgent("a", "host", "10.0.0.2", 1, ranks, 6.0, 600.0, 600.0, 0.0)
    agent.receive(Order("c", 1, "run", generation=1, place=PLACE), 0.0)
    assert agent.state == "running" and ranks.running
    return agent, ranks


def test_culprit_is_named_though_the_order_to_clear_came_first() -> None:
    """Its death has made the ranks of another node fail, of which the coordinator heard sooner."""
    agent, ranks = running_agent()
    ranks.word = KILLED
    agent.receive(Order("c", 2, "wait", generation=1), 0.1)
    report = agent.report(0.1)
    assert (report.failure, report.generation, report.state) == (KILLED, 1, "idle")
    assert not ranks.running


def test_order_to_clear_ends_ranks_that_are_well() -> None:
    agent, ranks = running_agent()
    agent.receive(Order("c", 2, "wait", generation=1), 0.1)
    assert agent.report(0.1).failure is None
    assert not ranks.running
