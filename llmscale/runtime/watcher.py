"""Who hears of a run while it goes on."""


class Watcher:
    """Hears and does nothing; the terminal's progress display is one that shows it."""

    def poll(self) -> None:
        """Called several times a second."""

    def say(self, text: str) -> None:
        """Something that a person should read."""
