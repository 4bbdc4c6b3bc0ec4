"""Prometheus, which scrapes what a test or a benchmark shows it.

It is not among the programs that are installed on demand: Debian's package is large, and starts a service.
"""

import json
import shutil
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servers.process import Server


class Prometheus(Server):
    """One private Prometheus.

    Args:
        targets: what to scrape, each as ``host:port``.
        interval: how often, as Prometheus writes it.
        rules: the text of a rule file.
    """

    name = "Prometheus"
    stop_signal = signal.SIGTERM
    ready_text = "Server is ready to receive web requests"

    def __init__(self, targets: Sequence[str], *, interval: str = "1s", rules: str = "") -> None:
        super().__init__()
        self.targets = targets
        self.interval = interval
        self.rules = rules

    @staticmethod
    def program() -> str | None:
        """Where it is installed; ``None``: it is not."""
        return shutil.which("prometheus")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression yields now."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return what it yielded between two instants."""
        result: list[dict[str, Any]] = self.ask(
            "query_range", query=expression, start=start, end=end, step=step
        )["result"]
        return result

    def ask(self, what: str, **parameters: str | float) -> Any:
        """Call its API; return the data.

        Raises:
            ValueError: it refuses, as it does what is no PromQL.
        """
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}/api/v1/{what}?{query}") as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refused:
            with refused:
                raise ValueError(json.load(refused)["error"]) from None

    # -- the process

    def _prepare(self) -> None:
        self._write("rules.yml", self.rules)
        configuration = {
            "global": {"scrape_interval": self.interval, "evaluation_interval": self.interval},
            "rule_files": ["rules.yml"] if self.rules else [],
            "scrape_configs": [{"job_name": "app", "static_configs": [{"targets": list(self.targets)}]}],
        }
        self._write("prometheus.yml", json.dumps(configuration))  # JSON is YAML

    def _command(self) -> list[str | Path]:
        return [
            self.program() or "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address={self.host}:{self.port}",
        ]
