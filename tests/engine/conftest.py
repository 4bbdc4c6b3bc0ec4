"""How hypothesis looks for counter-examples here, and where the simulator's seed is printed."""

import gc
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# At random, and what is found can be played again.  No deadline: an example that is slow on a busy
# machine is no counter-example.
settings.register_profile("engine", deadline=None, print_blob=True)
settings.load_profile("engine")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which schedules were simulated, so that they can be simulated again."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "schedules":
                    terminalreporter.write_line(f"simulated schedules: {value}")


@pytest.fixture(autouse=sys.version_info >= (3, 12))
def collected_by_hand() -> Iterator[None]:
    """Let what a test leaves stay young, so that `World.settle` can collect it a hundred times a second."""
    gc.disable()
    yield
    gc.enable()
