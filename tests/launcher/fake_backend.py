"""A backend that takes everything and runs nothing, for whatever kind a test puts it in the table as."""

from collections.abc import Sequence

from llmscale_launcher.backends.base import JobRequest, SubmitError
from llmscale_launcher.job import JobRecord, JobState

from llmscale.config.problems import Problem
from llmscale.config.schema import Config


class FakeBackend:
    """What it was given stands in lists of the class, since every look-up makes a new one."""

    has_arrays = False
    requests: list[JobRequest] = []
    cancelled: list[str] = []
    queries = 0
    refuses_after = 10**9

    @classmethod
    def reset(cls) -> None:
        cls.requests, cls.cancelled, cls.queries, cls.refuses_after = [], [], 0, 10**9

    def check(self, config: Config) -> list[Problem]:
        return []

    def script(self, request: JobRequest) -> str:
        return f"run {request.folder.name}\n"

    def submit(self, request: JobRequest) -> JobRecord:
        if len(self.requests) >= self.refuses_after:
            raise SubmitError("the fake is full")
        self.requests.append(request)
        waits = [f"{earlier.until} {earlier.folder.name}" for earlier in request.after]
        return JobRecord("local", f"fake-{len(self.requests)}", None, 1.0, depends_on=waits)

    def states(self, records: Sequence[JobRecord]) -> dict[str, JobState]:
        FakeBackend.queries += 1
        return {record.key: JobState("ended") for record in records}

    def cancel(self, record: JobRecord) -> None:
        self.cancelled.append(record.key)
