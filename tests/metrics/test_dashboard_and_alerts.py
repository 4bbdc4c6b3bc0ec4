"""The dashboard and the alert rules ask for what is exported, and a real Prometheus understands them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from servers import wait_until
from servers.prometheus import Prometheus

from connpool.metrics.prometheus import PoolCollector

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs" / "_static" / "grafana" / "connpool.json"
ALERTS = ROOT / "docs" / "_static" / "prometheus" / "alerts.yml"
CASES = Path(__file__).with_name("alerts.test.yml")

PROGRAMS = [program for program in ("prometheus", "promtool") if shutil.which(program)]
with_prometheus = pytest.mark.skipif(len(PROGRAMS) < 2, reason="Prometheus is not installed")


def panels():
    return json.loads(DASHBOARD.read_text())["panels"]


def expressions():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize("text", ["\n".join(expressions()), ALERTS.read_text()], ids=["dashboard", "alerts"])
def test_only_what_is_exported_is_asked_for(pool, text):
    samples = [sample for family in PoolCollector(pool).collect() for sample in family.samples]
    names = set(re.findall(r"connpool_\w+", text))
    assert names
    assert names <= {sample.name for sample in samples}
    for label, values in re.findall(r'\b(state|reason|fault)=~?"([^"]+)"', text):
        assert set(values.split("|")) <= {sample.labels.get(label) for sample in samples}


def test_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in panels()]
    cells = {
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(cells) == sum(place["w"] * place["h"] for place in places)
    assert max(x for x, _ in cells) < 24


@pytest.mark.server
@with_prometheus
def test_alerts_are_set_off_by_what_they_are_for(tmp_path):
    for file in (ALERTS, CASES):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", CASES.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stdout + done.stderr


@pytest.mark.server
@with_prometheus
def test_every_panel_and_rule_has_data_in_a_real_prometheus(pool):
    registry = CollectorRegistry()
    registry.register(PoolCollector(pool))
    web, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        target = f"127.0.0.1:{web.server_port}"
        with Prometheus([target], interval="200ms", rules=ALERTS.read_text()) as prometheus:
            wait_until(lambda: prometheus.query("rate(connpool_releases_total[5s])"))
            for expression in expressions():
                # nothing happens any more, so what is above zero would be empty
                now = (
                    expression.removesuffix(" > 0")
                    .replace("$__rate_interval", "5s")
                    .replace("$pool", "orders")
                )
                assert prometheus.query(now), expression
            with pytest.raises(ValueError, match="parse error"):
                prometheus.query("sum(")
            wait_until(lambda: {rule["health"] for rule in rules(prometheus)} == {"ok"})
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


def rules(prometheus):
    return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]


def test_every_name_is_in_the_reference(pool):
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for family in PoolCollector(pool).collect():
        full = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"\n| `{full}` | {family.type} |" in page
