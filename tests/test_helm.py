"""The Helm chart: linted and rendered by Helm itself, held to Kubernetes's schemas and to docker-compose.yml.

There is no cluster in the tests. Both files run the same commands, and tests/test_deployment.py runs those.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import SecretStr
from test_deployment import OURS, WORKERS

from worker import broker, work
from worker.jobs import metrics
from worker.settings import Settings
from worker.webhooks import receivers

needed = ("helm_python", "kubernetes_validate", "cloudcoil")
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    pytest.skip(f"the chart is not tested without {missing}: make .venv/helm", allow_module_level=True)

PROJECT = Path(__file__).resolve().parents[1]
CHART = PROJECT / "ops" / "helm"
# The newest that its schemas are known of, and the oldest that the chart takes.
KUBERNETES = ("1.37", "1.30")
SETTINGS = {f"NORIA_{name.upper()}": str(field) for name, field in Settings.model_fields.items()}
NO_SECRET = {name for name, field in SETTINGS.items() if SecretStr.__name__ not in field}
NO_SECRET -= {"NORIA_ACCOUNTS", "NORIA_ALERT_URL"}  # keys are in them, too

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]  # by kind and name
Rendered = dict[str, Objects]  # by the name of the values

DEFAULTS: Object = yaml.safe_load((CHART / "values.yaml").read_text())
EVERYTHING: Object = {
    "image": {"repository": "registry.example.com/noria", "tag": "sha256:" + 64 * "a", "pullSecrets": ["registry"]},
    "secret": {"name": "noria-keys", "files": "certificates"},
    "settings": {"NORIA_S3_BUCKET": "clips", "NORIA_MAX_OUTPUT_BYTES": "4294967296"},
    "catalog": "# 模型\nmodels:\n  wan9-t2v: {like: wan2.5-t2v-preview}\n",
    "api": {"replicas": 3},
    "workers": {"control": {"replicas": 2}, "more-calls": DEFAULTS["workers"]["calls"] | {"threads": 8}},
    "ingress": {"enabled": True, "host": "noria.example.com", "tlsSecret": "tls", "className": "nginx"},
    "flower": {"urlPrefix": "/flower/"},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "keda": {"enabled": True, "prometheus": "http://prometheus:9090", "match": 'namespace="noria"'},
    "serviceAccountName": "noria",
    "nodeSelector": {"pool": "media"},
    "tolerations": [{"key": "media", "operator": "Exists"}],
}
VALUES: dict[str, Object] = {
    "defaults": {},
    "everything": EVERYTHING,
    "another catalog": EVERYTHING | {"catalog": "models: {}\n"},
    "no flower": {"flower": {"enabled": False}},
    "calls alone twice": {"workers": {"calls": {"replicas": 2}}},
}
# Wrong values, and what is said of them.
WRONG: dict[str, tuple[Object, str]] = {
    "a key that is none": ({"replicas": 2}, "additional properties 'replicas' not allowed"),
    "a second clock": ({"clock": {"replicas": 2}}, "at '/clock': additional properties 'replicas' not allowed"),
    "no replicas": ({"api": {"replicas": 0}}, "at '/api/replicas': minimum: got 0, want 1"),
    "a secret": ({"settings": {"NORIA_DATABASE_URL": "x"}}, "invalid propertyName 'NORIA_DATABASE_URL'"),
    "a setting that is none": ({"settings": {"NORIA_BUCKET": "x"}}, "invalid propertyName 'NORIA_BUCKET'"),
    "a number": ({"settings": {"NORIA_POLL_QPS": 15}}, "at '/settings/NORIA_POLL_QPS': got number, want string"),
    "a queue that is none": ({"workers": {"calls": {"queues": "cals"}}}, "at '/workers/calls/queues': 'cals' does not"),
    "too many threads": ({"workers": {"calls": {"threads": 64}}}, "at '/workers/calls/threads': maximum: got 64"),
    "half a worker": ({"workers": {"rest": {"queues": "calls"}}}, "at '/workers/rest': missing properties 'replicas'"),
    "scaling by nothing": ({"keda": {"enabled": True}}, "at '/keda/prometheus': '' does not match"),
    "an ingress for no host": ({"ingress": {"enabled": True}}, "at '/ingress/host': minLength: got 0"),
}
HELM = """
import json, sys
import helm_python as helm

asked = json.load(sys.stdin)

def refused(values):
    try:
        chart.render(values)
    except helm.HelmError as error:
        return str(error)

with helm.Chart.load(asked["chart"]) as chart:
    answer = {
        "linted": {name: helm.lint(asked["chart"], values) for name, values in asked["values"].items()},
        "rendered": {name: chart.render(values, name="noria") for name, values in asked["values"].items()},
        "refused": {name: refused(values) for name, values in asked["wrong"].items()},
    }
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def helm() -> Object:
    """What Helm says of the chart: in a process of its own, since a runtime for Go comes with it."""
    asked = {"chart": str(CHART), "values": VALUES, "wrong": {name: values for name, (values, _) in WRONG.items()}}
    done = subprocess.run(
        [sys.executable, "-c", HELM], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said: Object = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def rendered(helm: Object) -> Rendered:
    """The objects of each set of values, by kind and name."""
    return {name: dict(_objects(files)) for name, files in helm["rendered"].items()}


@pytest.fixture
def everything(rendered: Rendered) -> Objects:
    return rendered["everything"]


@pytest.fixture
def pods(rendered: Rendered) -> dict[str, Object]:
    """The pods of the default values, by the service of docker-compose.yml."""
    return _pods(rendered["defaults"])


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_finds_nothing_to_warn_of(helm: Object, name: str) -> None:
    report = helm["linted"][name]

    assert report["errors"] == []
    assert [said for said in report["messages"] if said["error"] != "icon is recommended"] == []


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", VALUES)
def test_every_object_is_one_that_kubernetes_takes(rendered: Rendered, name: str, version: str) -> None:
    import kubernetes_validate
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

    models = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}
    for (kind, _), found in rendered[name].items():
        if kind in models:
            read = models[kind].model_validate(found)
            assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == found, "a field that is none"
        else:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_in_words(helm: Object, name: str) -> None:
    assert WRONG[name][1] in helm["refused"][name]


def test_the_commands_are_those_of_the_compose_file(pods: dict[str, Object]) -> None:
    assert {name: _container(pod)["command"] for name, pod in pods.items()} == {
        name: shlex.split(service["command"]) for name, service in OURS.items()
    }


def test_a_process_is_given_the_compose_files_time_to_end(pods: dict[str, Object]) -> None:
    given = {name: f"{pod['terminationGracePeriodSeconds']}s" for name, pod in pods.items() if name != "migrate"}

    assert given == {n: service["stop_grace_period"] for n, service in OURS.items() if n != "migrate"}


def test_a_process_is_ready_by_the_compose_files_check(pods: dict[str, Object]) -> None:
    assert "readinessProbe" not in _container(pods.pop("migrate"))
    for name, pod in pods.items():
        container, check = _container(pod), OURS[name]["healthcheck"]
        probe, url = container["readinessProbe"], urlsplit(check["test"][-1])
        if url.scheme:
            assert probe["httpGet"] == {"path": re.sub("/+", "/", url.path), "port": "http"}
            assert container["ports"] == [{"name": "http", "containerPort": url.port}]
        else:
            assert probe["exec"]["command"] == check["test"][1:]
        assert (f"{probe['periodSeconds']}s", f"{probe['timeoutSeconds']}s") == (check["interval"], check["timeout"])
        assert probe["failureThreshold"] == check["retries"]


def test_flower_is_found_ready_below_its_prefix(everything: Objects) -> None:
    flower = _container(_pods(everything)["flower"])

    assert flower["readinessProbe"]["httpGet"]["path"] == "/flower/healthcheck"


def test_no_pod_is_killed_because_the_broker_is_away(pods: dict[str, Object]) -> None:
    alive = {name: _container(pod)["livenessProbe"] for name, pod in pods.items() if "livenessProbe" in _container(pod)}

    assert {name: probe["httpGet"]["path"] for name, probe in alive.items()} == {"api": "/healthz"}


def test_a_pod_may_do_little_and_use_so_much(rendered: Rendered) -> None:
    for name, pod in {**_pods(rendered["everything"]), **_pods(rendered["defaults"])}.items():
        container = _container(pod)
        user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        [tmp] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "tmp"]

        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {"/tmp"}
        assert _bytes(tmp["sizeLimit"]) < _bytes(container["resources"]["limits"]["memory"])
        if name in OURS:
            assert user == OURS[name]["user"]
            assert container["resources"]["limits"]["memory"].lower() == f"{OURS[name]['mem_limit']}i"


def test_secrets_are_named_and_never_written(rendered: Rendered) -> None:
    for name, objects in rendered.items():
        assert "Secret" not in {kind for kind, _ in objects}, name
        for process, pod in _pods(objects).items():
            said = {entry["name"]: entry["value"] for entry in _container(pod).get("env", []) if "value" in entry}
            if process == "flower":
                assert said.pop("NORIA_DATABASE_URL") == OURS["flower"]["environment"]["NORIA_DATABASE_URL"]
            assert {name for name in said if name.startswith("NORIA_")} <= NO_SECRET


def test_flower_gets_what_it_gets_from_the_compose_file(pods: dict[str, Object]) -> None:
    flower, there = _container(pods["flower"]), OURS["flower"]["environment"]

    assert "envFrom" not in flower
    assert {entry["name"] for entry in flower["env"]} == set(there)
    for entry in flower["env"]:
        assert entry.get("value", entry.get("valueFrom")) == (
            {"secretKeyRef": {"name": "noria", "key": entry["name"]}}
            if entry["name"] in ("NORIA_BROKER_URL", "FLOWER_BASIC_AUTH")
            else there[entry["name"]] or ""
        )


def test_settings_are_those_of_env_example_that_are_no_secret() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]

    assert set(schema["propertyNames"]["enum"]) == NO_SECRET - {"NORIA_CATALOG"}


def test_the_chart_names_settings_that_exist() -> None:
    text = "".join(path.read_text() for path in CHART.rglob("*") if path.is_file())
    named = set(re.findall(r"\bNORIA_[A-Z0-9_]+\b", text))

    assert named <= set(SETTINGS)
    assert len(named) > len(NO_SECRET)


def test_a_migration_needs_nothing_that_the_chart_makes(everything: Objects) -> None:
    job = everything["Job", "noria-migrate"]
    pod = job["spec"]["template"]["spec"]
    sources = {volume["name"]: {*volume} - {"name"} for volume in pod["volumes"]}

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert _container(pod)["envFrom"] == [{"secretRef": {"name": "noria-keys"}}]
    assert sources == {"tmp": {"emptyDir"}, "files": {"secret"}}


def test_the_catalog_lies_where_the_compose_file_has_it_and_a_new_one_starts_new_pods(
    rendered: Rendered,
) -> None:
    one, other = rendered["everything"], rendered["another catalog"]
    deployments = [key for key in one if key[0] == "Deployment"]

    assert one["ConfigMap", "noria-catalog"]["data"] == {"catalog.yaml": EVERYTHING["catalog"]}
    for process, pod in _pods(one).items():
        mounts = {m["mountPath"] for m in _container(pod)["volumeMounts"]}
        assert (OURS["api"]["environment"]["NORIA_CATALOG"] in mounts) == (process not in ("flower", "migrate"))
    for key in deployments:
        assert one[key]["spec"]["template"] != other[key]["spec"]["template"]


def test_what_is_not_asked_for_is_not_there(rendered: Rendered) -> None:
    defaults = rendered["defaults"]

    assert {kind for kind, _ in defaults} == {"Deployment", "Service", "Job"}
    assert rendered["no flower"].keys() == {key for key in defaults if "flower" not in key[1]}
    added = rendered["calls alone twice"].keys() - defaults.keys()
    assert added == {("PodDisruptionBudget", "noria-worker-calls")}


def test_what_has_several_pods_is_drained_one_by_one(everything: Objects) -> None:
    budgets = {name: found["spec"] for (kind, name), found in everything.items() if kind == "PodDisruptionBudget"}

    assert set(budgets) == {"noria-api", *(f"noria-{name}" for name in WORKERS), "noria-worker-more-calls"}
    for name, spec in budgets.items():
        assert spec["maxUnavailable"] == 1
        assert spec["selector"] == everything["Deployment", name]["spec"]["selector"]


def test_there_is_one_clock(everything: Objects) -> None:
    spec = everything["Deployment", "noria-clock"]["spec"]

    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_a_worker_is_scaled_by_a_figure_that_noria_gives(everything: Objects) -> None:
    labels = {name: of for name, of, *_ in metrics._STATEMENTS}
    scaled = {name: found["spec"] for (kind, name), found in everything.items() if kind == "ScaledObject"}

    assert set(scaled) == {f"noria-worker-{name}" for name in ("calls", "more-calls", "transfer", "webhook")}
    for name, spec in scaled.items():
        container = _container(everything["Deployment", name]["spec"]["template"]["spec"])
        queues = container["command"][container["command"].index("-Q") + 1].split(",")
        [(metric, said)] = re.findall(r"(noria_\w+)\{(.*?)\}", spec["triggers"][0]["metadata"]["query"])
        matched = dict(re.findall(r'(\w+)=~?"(.*?)"', said))
        assert matched.pop("namespace") == "noria"
        assert matched.keys() == set(labels[metric])
        assert matched == {"queue": "|".join(queues), "message": "sent"}
        assert spec["scaleTargetRef"]["name"] == name
        assert "replicas" not in everything["Deployment", name]["spec"], "an upgrade would undo what was scaled"


def test_as_many_rows_may_be_sent_as_bring_all_replicas(rendered: Rendered) -> None:
    """The tick sends no more than so many: a threshold above that share would never be passed."""
    sent = {queue: max(g.on_their_way for g in work.GROUPS if g.queue == queue) for queue in ("calls", "transfer")}
    sent["webhook"] = receivers._LIMITS["all"]
    workers = {name: worker for name, worker in DEFAULTS["workers"].items() if "maxReplicas" in worker}

    assert {name: worker["waiting"] * worker["maxReplicas"] for name, worker in workers.items()} == sent


def test_a_worker_reads_queues_that_there_are() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["$defs"]["worker"]["properties"]["queues"]
    one = "|".join(broker.QUEUES)

    assert schema["pattern"] == f"^({one})(,({one}))*$"


def test_prometheus_reads_the_metrics_with_the_secrets_token(everything: Objects) -> None:
    monitor, service = everything["ServiceMonitor", "noria-api"], everything["Service", "noria-api"]
    [endpoint] = monitor["spec"]["endpoints"]

    assert endpoint["authorization"]["credentials"] == {"name": "noria-keys", "key": "NORIA_METRICS_TOKEN"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_services_find_their_pods(everything: Objects) -> None:
    for (kind, name), service in everything.items():
        if kind == "Service":
            template = everything["Deployment", name]["spec"]["template"]
            assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
            [port] = _container(template["spec"])["ports"]
            assert service["spec"]["ports"] == [
                {"name": "http", "port": port["containerPort"], "targetPort": port["name"]}
            ]


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]


def test_an_image_is_named_by_tag_or_by_digest(rendered: Rendered) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]

    assert {_container(pod)["image"] for pod in _pods(rendered["defaults"]).values()} == {f"noria:{version}"}
    by_digest = f"registry.example.com/noria@sha256:{64 * 'a'}"
    assert {_container(pod)["image"] for pod in _pods(rendered["everything"]).values()} == {by_digest}


def _objects(files: dict[str, str]) -> Iterator[tuple[tuple[str, str], Object]]:
    for name, text in files.items():
        for found in yaml.safe_load_all(text) if name.endswith(".yaml") else ():
            if found:
                yield (found["kind"], found["metadata"]["name"]), found


def _pods(objects: Objects) -> dict[str, Object]:
    return {
        name.removeprefix("noria-"): found["spec"]["template"]["spec"]
        for (kind, name), found in objects.items()
        if kind in ("Deployment", "Job")
    }


def _container(pod: Object) -> Object:
    [container] = pod["containers"]
    found: Object = container
    return found


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([MG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]
