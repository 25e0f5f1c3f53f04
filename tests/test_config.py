"""The examples in config/ can be read, agree with each other, and name only what exists."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import cli
from proxy.commands.options import load
from proxy.settings import Settings
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
CLIENTS, MESH = Settings().listen.port, Settings().mesh_listen.port
IN_IMAGE = dict(re.findall(r"(HUBMESH_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
DYNAMIC = {"$(POD_IP)": "10.0.0.7"}


def read(name: str) -> Any:
    return yaml.safe_load((CONFIG / name).read_text())


def settings(args: list[str], environment: dict[str, str], tmp_path: Path) -> Settings:
    """Return the settings for a command line and an environment; raises if a node would not start with them."""
    for shown, real in DYNAMIC.items():
        environment = {name: value.replace(shown, real) for name, value in environment.items()}
    assert args[0] == "serve"
    command = cli.hubmesh.get_command(None, "serve")
    assert command is not None
    with command.make_context("serve", args[1:]) as context:
        return load(context.params, {"HOME": str(tmp_path), **environment})


def test_no_setting_is_promised_that_nobody_reads() -> None:
    # Some are read together, by a property of the settings themselves.
    read = "".join(path.read_text() for path in (ROOT / "proxy").rglob("*.py"))
    assert [f.name for f in fields(Settings) if not re.search(rf"\b(settings|self)\.{f.name}\b", read)] == []


# --- systemd


def test_the_unit_starts_a_node_and_nothing_else(tmp_path: Path) -> None:
    text = (CONFIG / "hubmesh.service").read_text()
    lines = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line))
    program, *args = shlex.split(lines["ExecStart"])
    assert program.endswith("/bin/hubmesh")
    at = args.index("--config")
    assert (args[at + 1], args[at]) == ("/etc/hubmesh/node.toml", "--config")
    args[at + 1] = str(CONFIG / "node.toml")
    found = settings(args, {}, tmp_path)
    assert str(found.data_dir) == f"/var/lib/{lines['StateDirectory']}"
    assert float(lines["TimeoutStopSec"]) > found.drain_timeout
    assert "HUBMESH_MESH_KEY_FILE" in text
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "hubmesh.service"
        unit.write_text(text.replace(program, "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
        complaints = [line for line in done.stderr.splitlines() if str(unit) in line or "hubmesh.service" in line]
        assert complaints == []


# --- compose


def test_compose_is_a_seed_and_three_nodes(tmp_path: Path) -> None:
    compose = read("compose.yaml")
    services = compose["services"]
    assert list(services) == ["seed", "node-1", "node-2", "node-3"]
    taken = set()
    for name, service in services.items():
        found = settings(["serve"], IN_IMAGE | service["environment"], tmp_path)
        assert found.role == ("seed" if name == "seed" else "peer")
        assert [str(seed) for seed in found.seeds] == ([] if name == "seed" else [f"seed:{MESH}"])
        assert not found.mdns
        assert str(found.mesh_key_file) == f"/run/secrets/{service['secrets'][0]}"
        assert service["secrets"][0] in compose["secrets"]
        [(volume, inside)] = [mount.split(":") for mount in service["volumes"]]
        assert volume in compose["volumes"]
        assert (service["read_only"], service["tmpfs"]) == (True, ["/tmp"])
        assert inside == str(found.data_dir)
        assert float(service["stop_grace_period"].removesuffix("s")) > found.drain_timeout
        assert (CONFIG / service["build"] / "Dockerfile").exists()
        for port in service.get("ports", ()):
            host, outside, container = port.split(":")
            assert (host, int(container)) == ("127.0.0.1", found.listen.port)
            taken.add(outside)
    assert len(taken) == 3


# --- Kubernetes


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The objects by kind; there is one of each."""
    objects = list(yaml.safe_load_all((CONFIG / "kubernetes.yaml").read_text()))
    assert {o["metadata"].get("namespace", "hubmesh") for o in objects} == {"hubmesh"}
    return {o["kind"]: o for o in objects}


def sets(cluster: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Yield (the set, its pod, the pod's container)."""
    for kind in ("StatefulSet", "DaemonSet"):
        pod = cluster[kind]["spec"]["template"]
        [container] = pod["spec"]["containers"]
        yield cluster[kind], pod, container


def test_kubernetes_objects_belong_together(cluster: dict[str, Any], tmp_path: Path) -> None:
    service, policy = cluster["Service"], cluster["NetworkPolicy"]
    assert service["spec"]["clusterIP"] == "None"
    seed_labels = cluster["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= seed_labels.items()
    assert cluster["StatefulSet"]["spec"]["serviceName"] == service["metadata"]["name"]
    assert [port["port"] for port in service["spec"]["ports"]] == [MESH]
    roles = []
    for owner, pod, container in sets(cluster):
        labels = pod["metadata"]["labels"]
        assert owner["spec"]["selector"]["matchLabels"] == labels
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        found = settings(container["args"], IN_IMAGE | environment, tmp_path)
        roles.append(found.role)
        assert [str(seed) for seed in found.seeds] == [f"{service['metadata']['name']}:{MESH}"]
        assert str(found.advertise) == f"10.0.0.7:{MESH}"
        assert labels["role"] == found.role
        assert pod["spec"]["terminationGracePeriodSeconds"] > found.drain_timeout
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert (
            ports == {"clients": found.listen.port, "mesh": found.mesh_listen.port} == {"clients": 8090, "mesh": 8091}
        )
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["data"] == str(found.data_dir)
        assert mounts["tmp"] == "/tmp" or not container["securityContext"]["readOnlyRootFilesystem"]
        assert found.mesh_key_file == Path(mounts["key"]) / "key"
        claims = {claim["metadata"]["name"] for claim in owner["spec"].get("volumeClaimTemplates", ())}
        assert set(mounts) == claims | {volume["name"] for volume in pod["spec"]["volumes"]}
        assert "secretName" in json.dumps(pod["spec"]["volumes"])
        assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(CLIENTS)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
    assert roles == ["seed", "peer"]
    assert [port["hostPort"] for port in container["ports"] if "hostPort" in port] == [CLIENTS]
    text = (CONFIG / "kubernetes.yaml").read_text()
    assert f"http://$(HOST_IP):{CLIENTS}" in text
    assert "create secret generic mesh-key --from-literal=key=" in text
    rules = policy["spec"]["ingress"]
    assert [(rule["ports"][0]["port"], list(rule["from"][0])) for rule in rules] == [
        (MESH, ["podSelector"]),
        (CLIENTS, ["namespaceSelector"]),
    ]


def test_the_kubernetes_variant_for_ipv6_gives_addresses_that_a_node_takes(
    cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DYNAMIC, "$(POD_IP)", "fd00:10:244::5")
    variant = re.findall(r"^#   - (\{name: .*\})$", (CONFIG / "kubernetes.yaml").read_text(), re.MULTILINE)
    instead = {entry["name"]: entry["value"] for entry in map(yaml.safe_load, variant)}
    for _, _, container in sets(cluster):
        environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        found = settings(container["args"], IN_IMAGE | environment | instead, tmp_path)
        assert str(found.advertise) == f"[fd00:10:244::5]:{MESH}"
        assert (str(found.listen), str(found.mesh_listen)) == (f"[::]:{CLIENTS}", f"[::]:{MESH}")


# --- what they name exists in a running node


@pytest.fixture
def metrics(hub: HubProcess, tmp_path: Path) -> dict[str, str]:
    """Name → type, as shown by a node."""
    with NodeProcess(tmp_path / "node", hub.url) as node:
        page = node.get("/-/metrics").decode()
        for path in ("/-/health", "/-/ready", "/-/metrics"):
            assert ask(node.url + path).status == 200
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))


def test_rules_and_dashboard_use_metrics_that_there_are(metrics: dict[str, str]) -> None:
    rules = [rule for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
    dashboard = json.loads((CONFIG / "grafana.json").read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 6
    used = set()
    for expression in [rule["expr"] for rule in rules] + targets:
        assert expression.count("(") == expression.count(")"), expression
        assert expression.count("{") == expression.count("}"), expression
        names = set(re.findall(r"\bhubmesh_\w+", expression))
        assert names or "up{" in expression, expression
        for name in names:
            histogram = re.sub(r"_(bucket|sum|count)\Z", "", name)
            assert name in metrics or metrics.get(histogram) == "histogram", f"{name} in {expression}"
            counted = re.search(rf"(rate|increase)\({name}\b", expression)
            kind = metrics.get(name, "histogram")
            assert bool(counted) == (kind != "gauge"), f"{name} is a {kind}: {expression}"
        used |= names
    for rule in rules:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        for name, window in re.findall(r"increase\((\w+)\[(\w+)\]\) > 0(?!\.)", rule["expr"]):
            assert f"or ({name} > 0 unless {name} offset {window})" in rule["expr"], "its first event adds the series"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert {re.sub(r"_bucket\Z", "", name) for name in used} == set(metrics), "a metric that nobody looks at"


def test_probes_ask_for_pages_that_there_are(cluster: dict[str, Any]) -> None:
    for _, _, container in sets(cluster):
        assert container["readinessProbe"]["httpGet"]["path"] == "/-/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/-/health"
        start = container["startupProbe"]
        assert start["httpGet"]["path"] == "/-/health"
        assert start["periodSeconds"] * start["failureThreshold"] >= 120, "a full catalog is checked first"


def test_every_example_is_tried_here_or_with_the_settings() -> None:
    assert {path.name for path in CONFIG.iterdir()} == {
        *("node.toml", "hubmesh.service", "compose.yaml", "kubernetes.yaml", "alerts.yaml", "grafana.json"),
    }
