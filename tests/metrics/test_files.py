"""Alert rules by Prometheus's own player, and what compose/ says of Prometheus and Grafana, without either of them."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from messages.config import read
from messages.metrics import CLUSTER, HOST, full_name
from tests.metrics.prometheus import ROOT, RULES, dashboards, expressions, program

COMPOSE = ROOT / "compose"
HISTORIES = Path(__file__).parent / "alerts.yml"


def rules() -> list[dict[str, str]]:
    found: list[dict[str, str]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return found


def test_every_rule_is_provoked_by_a_history(tmp_path: Path) -> None:
    histories = HISTORIES.read_text().replace("RULES", str(RULES))
    (tmp_path / "alerts.yml").write_text(histories)
    promtool = program("promtool")
    done = subprocess.run([promtool, "test", "rules", tmp_path / "alerts.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    raised = {
        one["alertname"]
        for test in yaml.safe_load(histories)["tests"]
        for one in test["alert_rule_test"]
        if one.get("exp_alerts")
    }
    assert raised == {rule["alert"] for rule in rules()}


def test_prometheus_takes_its_configuration() -> None:
    command = [program("promtool"), "check", "config", str(COMPOSE / "prometheus" / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_and_rules_name_no_metric_that_is_not_in_the_table() -> None:
    known = {full_name(line) for line in (*CLUSTER, *HOST)}
    for line in CLUSTER:
        if line.kind == "histogram":
            known |= {f"{line.name}{part}" for part in ("_bucket", "_sum", "_count")}
    asked = [rule["expr"] for rule in rules()]
    for dashboard in dashboards().values():
        asked += expressions(dashboard).values()
    named = {word for expression in asked for word in _names(expression)}
    assert named <= known, named - known
    told = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in named}
    unseen = {full_name(line) for line in CLUSTER} - told
    assert not unseen, "the supervisor tells it, and no panel shows it"


def _names(expression: str) -> list[str]:
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in expression).split()
    return [word for word in words if word.startswith("troupe_")]


def test_the_dashboards_are_those_that_grafana_is_told_of() -> None:
    source = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    for name, dashboard in dashboards().items():
        assert dashboard["uid"] == f"troupe-{name}"
        for panel in dashboard["panels"]:
            assert panel["type"] == "row" or panel["datasource"]["uid"] == source[0]["uid"]
            assert panel["title"]
    monitoring = yaml.safe_load((COMPOSE / "compose.monitoring.yaml").read_text())
    provider = yaml.safe_load((COMPOSE / "grafana/provisioning/dashboards/troupe.yaml").read_text())["providers"][0]
    mounts = dict(mount.split(":")[:2][::-1] for mount in monitoring["services"]["grafana"]["volumes"])
    assert mounts[provider["options"]["path"]] == "./compose/grafana/dashboards"


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_their_containers_are_kept_small_and_to_this_host(name: str) -> None:
    whole = yaml.safe_load((COMPOSE / "compose.monitoring.yaml").read_text())
    service = whole["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for mount in service["volumes"]:
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in whole["volumes"], mount
        assert not source.startswith(".") or mount.endswith(":ro")
    assert ":" in service["image"], "an exact version"
    assert os.path.basename(service["image"]).rpartition(":")[2] != "latest"


def test_prometheus_scrapes_where_the_containers_listen() -> None:
    jobs = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    config = read(ROOT / "configs" / "containers.yaml")
    assert targets == {
        "troupe-supervisor": [f"supervisor:{config.dashboard.port}"],
        "troupe-publisher": [f"publisher-0:{config.publisher.http.port}"],
    }
    assert config.dashboard.host == config.publisher.http.host == "0.0.0.0"
    assert "supervisor" in config.dashboard.names, "else its page refuses the name"
