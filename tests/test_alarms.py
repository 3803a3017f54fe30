"""Rules and dashboards: an alert fires when it must and not before, and what they ask for is what /metrics gives.

Rules are tried on figures that are written down (promtool), and once on those of an API that runs (Prometheus).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import Served, eventually, served
from sqlalchemy import create_engine, text
from stage import Stage

from ops import cli
from worker.jobs import metrics

OPS = Path(__file__).resolve().parents[1] / "ops"
RULES = OPS / "prometheus" / "alerts.yaml"
TESTS = sorted((OPS / "prometheus").glob("*.test.yaml"))
CONFIG = OPS / "prometheus" / "prometheus.yaml"
DASHBOARD = OPS / "grafana" / "noria.json"
TOKEN = "watch-me"
GIVEN = {row[0] for row in (*metrics._LANES, *metrics._STATEMENTS)}
MADE = {"noria:recent_calls"}  # by a rule of ours

RULE: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
TARGETS = [
    target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", ())
]

prometheus_here = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Debian's package prometheus is not here"
)


def promtool(*words: str | Path, folder: Path | None = None) -> None:
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@prometheus_here
def test_every_alert_fires_when_it_must_and_not_before() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", *TESTS)


@prometheus_here
def test_the_example_of_a_scrape_is_one_that_prometheus_takes(tmp_path: Path) -> None:
    shutil.copytree(CONFIG.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "token").touch()

    promtool("check", "config", "prometheus.yaml", folder=tmp_path)


@pytest.mark.parametrize("name", RULE)
def test_an_alert_says_who_acts_on_what_and_how(name: str) -> None:
    said = RULE[name]["annotations"]

    assert RULE[name]["labels"]["severity"] in {"page", "ticket"}
    assert set(said) == {"summary", "description", "runbook"}
    assert all(text and "\n" not in text for text in said.values())


@pytest.mark.parametrize("name", RULE)
def test_an_alert_has_figures_at_which_it_fires_and_figures_at_which_it_does_not(name: str) -> None:
    [test] = [test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"] if test["name"] == name]
    asked = [[sample["labels"] for sample in looked["exp_samples"]] for looked in test["promql_expr_test"]]

    assert {f'{{alertname="{name}"}}'} in [set(labels) for labels in asked]
    assert [] in asked


def test_the_commands_that_runbooks_name_are_there() -> None:
    text = " ".join(rule["annotations"]["runbook"] for rule in RULE.values())
    named = re.findall(r"noria ((?:batches|budgets|webhooks) [a-z]+|[a-z]+)", text)

    assert named
    for command in set(named):
        assert cli.run([*command.split(), "--help"]) == 0, command


@pytest.mark.parametrize("file", [RULES, *TESTS, DASHBOARD], ids=lambda file: file.name)
def test_what_is_asked_for_is_what_metrics_gives(file: Path) -> None:
    expressions = "\n".join(TARGETS) if file == DASHBOARD else file.read_text()
    named = set(re.findall(r"\bnoria[_:][a-z_]+", expressions))

    assert named
    assert named <= GIVEN | MADE


def test_the_dashboard_shows_every_figure() -> None:
    assert {name for name in GIVEN if not any(name in expression for expression in TARGETS)} == set()


@dataclass
class Prometheus:
    """A Prometheus that reads an API, by the rules and the example of a scrape; each alert fires at once."""

    url: str

    def ask(self, path: str, **more: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=more, trust_env=False)
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    def value(self, expression: str) -> list[Any]:
        return list(self.ask("query", query=expression)["result"])

    def firing(self) -> dict[str, Mapping[str, str]]:
        """The alerts that fire, each with its annotations."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"]: each["annotations"] for each in alerts if each["state"] == "firing"}


@contextmanager
def prometheus(api: Served, folder: Path) -> Iterator[Prometheus]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rules, config = yaml.safe_load(RULES.read_text()), yaml.safe_load(CONFIG.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [api.url.removeprefix("http://")]}]
    (folder / RULES.name).write_text(yaml.safe_dump(rules))
    (folder / CONFIG.name).write_text(yaml.safe_dump(config))
    (folder / "token").write_text(TOKEN)
    command = ["prometheus", f"--config.file={CONFIG.name}", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--storage.tsdb.path=data", "--log.level=warn"], cwd=folder, stdout=log, stderr=log
        )
    try:
        eventually(lambda: process.poll() is not None or _is_ready(address))
        assert process.poll() is None, (folder / "log").read_text()
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


TROUBLE = """
    update jobs set state = 'copying', run_at = now(), links_expire_at = now() + interval '1 hour' where id = :dying;
    update jobs set state = 'held', held_for = 'crashes', held_from = 'queued', run_at = null where id = :held;
    update jobs set state = 'uncertain', lane_id = (select min(id) from lanes where model = jobs.model)
     where id = :uncertain;
    update jobs set created_at = now() - interval '2 days' where id = :late;
    update owners set stopped_at = now(), stopped_until = now() + interval '1 hour', stopped_why = 'x';
    update lanes set pace = 0.1, paced_at = now(), ceiling = 1, ceiling_at = now() where model = 'wan2.5-t2v-preview';
    update deliveries set tries = 2;
    update webhook_endpoints set disabled_at = now(), disabled_why = 'gone';
    update duties set due_at = now() - interval '10 minutes';
    update attempts set outcome = 'unknown', http_status = 502;
"""
TROUBLED = {
    *("NoriaAccountStopped", "NoriaCreatesFail", "NoriaDeliveriesFailing", "NoriaEndpointDisabled", "NoriaHeld"),
    *("NoriaLaneThrottled", "NoriaLinksDying", "NoriaTickStands", "NoriaUncertain", "NoriaWaitsADay"),
}


@prometheus_here
def test_rules_and_dashboards_fit_what_a_running_api_gives(
    environment: dict[str, str], play: Stage, tmp_path: Path
) -> None:
    for job in [play.submit() for _ in range(5)]:
        play.until(job)
    told = {"webhook_url": "https://example.com/x", "webhook_events": ["job.queued"]}
    dying, held, uncertain, late, *_ = (play.submit(**told).id for _ in range(21))
    with served(environment, metrics_token=TOKEN) as api, prometheus(api, tmp_path) as watch:
        with api.http(api.key(play.project.name)) as http:
            assert http.post("/v1/webhook-endpoints", json={"url": "https://example.com/x"}).status_code == 201
        eventually(lambda: watch.value("noria:recent_calls") and not watch.firing())

        with api.engine.begin() as connection:
            for statement in TROUBLE.split(";")[:-1]:
                values = {"dying": dying, "held": held, "uncertain": uncertain, "late": late}
                named = {name: value for name, value in values.items() if f":{name}" in statement}
                connection.execute(text(statement), named)
        eventually(lambda: watch.firing().keys() >= TROUBLED)

        said = watch.firing()
        assert set(said) == TROUBLED
        assert not [words for each in said.values() for words in each.values() if "error expanding" in words]
        assert said["NoriaHeld"]["summary"] == "Held for a person to look (crashes): 1"
        assert {expression for expression in TARGETS if not watch.value(expression.replace("$model", ".*"))} == set()

        play.sql("update owners set stopped_at = null, stopped_until = null, stopped_why = null")
        play.sql("update lanes set parked_until = now() + interval '1 hour' where model = 'wan2.5-t2v-preview'")
        eventually(lambda: "NoriaLaneStopped" in watch.firing())

        away = create_engine("postgresql+psycopg://noria@127.0.0.1:1/noria", connect_args={"connect_timeout": 1})
        object.__setattr__(api.app.state.context, "beside", away)
        eventually(lambda: "NoriaNotRead" in watch.firing())
        assert "NoriaTickStands" not in watch.firing()


@prometheus_here
def test_the_compose_files_prometheus_reads_the_rules_and_the_token(tmp_path: Path) -> None:
    service = yaml.safe_load((OPS.parent / "docker-compose.yml").read_text())["services"]["prometheus"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    [script] = service["command"]
    for there, here in {"/tmp": tmp_path, "/etc/noria": RULES.parent, "=/prometheus": f"={tmp_path}/data"}.items():
        script = script.replace(there, str(here))
    script = script.replace("$$", "$").rstrip() + f" --web.listen-address={address} --log.level=warn"

    process = subprocess.Popen([*service["entrypoint"], script], env={**os.environ, "TOKEN": TOKEN})
    try:
        eventually(lambda: process.poll() is not None or _is_ready(address))
        watch = Prometheus(f"http://{address}")
        loaded = {rule["name"] for group in watch.ask("rules")["groups"] for rule in group["rules"]}
    finally:
        process.terminate()
        process.wait()

    assert loaded == {*RULE, *MADE}
    assert (tmp_path / "token").read_text() == TOKEN


def test_the_dashboard_is_where_grafana_looks_for_it() -> None:
    service = yaml.safe_load((OPS.parent / "docker-compose.yml").read_text())["services"]["grafana"]
    [provider] = yaml.safe_load((OPS / "grafana" / "dashboards.yaml").read_text())["providers"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in service["volumes"])

    assert mounts["./ops/grafana/noria.json"] == provider["options"]["path"] + "/noria.json"
    assert all((OPS.parent / source).is_file() for source in mounts)
