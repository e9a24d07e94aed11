"""State machines with a mistake each, which the simulator must find."""

from llmscale.control.coordinator import Coordinator, Seen
from llmscale.control.messages import Failure, Order
from llmscale.control.node import NodeAgent
from tests.control.simulator import Machines


class NeverFenced(NodeAgent):
    """Keeps its ranks though it hears nothing."""

    def tick(self, now: float) -> None:
        self.lease = now
        super().tick(now)


class FollowsStaleOrders(NodeAgent):
    """Does what the order says that came last, not what the newest says."""

    def receive(self, order: Order, now: float) -> None:
        if self.order is not None and self.order.coordinator == order.coordinator:
            self.order = None
        super().receive(order, now)


class NeverCounts(Coordinator):
    """Has as many restarts left after each failure as before."""

    def _judge(self, now: float) -> None:
        super()._judge(now)
        self.remaining = self.policy.max_restarts


class NeverResets(Coordinator):
    """Counts restarts, though new checkpoints come in between."""

    def _judge(self, now: float) -> None:
        self.committed_before = 10**9
        super()._judge(now)


class Impatient(Coordinator):
    """Starts anew as soon as a node is lost or a rank has died, whether or not all ranks are gone."""

    def _wait_for_clearing(self, now: float) -> None:
        for seen in self._present():
            if seen.report.failure and seen.report.failure not in self.failures:
                self.failures.append(seen.report.failure)
        if not self.failures:
            self.failures.append(Failure(0, "", 0, "gone", None, "", ()))
        self._judge(now)

    def _is_clear(self, seen: Seen) -> bool:
        return True


MISTAKES = {
    "agents are never fenced": Machines(agent=NeverFenced),
    "stale orders are followed": Machines(agent=FollowsStaleOrders),
    "the restart counter never rises": Machines(coordinator=NeverCounts),
    "the restart counter is never reset": Machines(coordinator=NeverResets),
    "ranks start before the others are gone": Machines(coordinator=Impatient),
    "checkpoints are not fenced": Machines(fences=False),
}
