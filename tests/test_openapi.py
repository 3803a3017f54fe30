"""The description and the API say the same: each answer has the form, the status and the type that are described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import CLIP, Served, served

from api import describe
from worker.kinds import KINDS

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12  # of each operation
ANY = list(HealthCheck)


@pytest.fixture
def api(environment: dict[str, str]) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@pytest.fixture
def described(api: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(api.url + "/openapi.json").json()
    return found


def test_it_is_openapi_3_1_and_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    components = described["components"]["schemas"]

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from (found for name, found in value.items() if name == "$ref")
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    found = set(references(described))
    assert described["openapi"].startswith("3.1")
    assert {reference.rpartition("/")[2] for reference in found} <= set(components)
    for name, component in components.items():
        Draft202012Validator.check_schema(component)
        assert component.get("description") or name.startswith("_"), name


def test_every_operation_is_explained_and_names_its_refusals(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            if path.startswith("/v1/"):
                assert operation["security"] == [{"key": []}]
                assert {"401", "422", "429", "503"} <= set(operation["responses"])
                for status, response in operation["responses"].items():
                    if status >= "400":
                        assert list(response["content"]) == ["application/problem+json"], (path, status)
            for parameter in operation.get("parameters", []):
                assert parameter.get("description") or parameter["schema"].get("description"), parameter["name"]


def test_the_input_is_documented_for_each_kind_with_an_example(described: dict[str, Any]) -> None:
    body = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    forms = described["components"]["schemas"]["JobCreate"]["properties"]["input"]["anyOf"]

    assert [form["$ref"].rpartition("/")[2] for form in forms] == [kind.input.__name__ for kind in KINDS.values()]
    assert {name: found["value"] for name, found in body["examples"].items()} == {
        kind: describe.example(kind) for kind in KINDS
    }


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_generated_request_finds_a_fault_of_ours_or_an_answer_that_is_not_described(
    api: Served, mode: GenerationMode
) -> None:
    headers = {"authorization": f"Bearer {api.key('spring')}"}
    job = httpx.post(api.url + "/v1/jobs", json=CLIP, headers=headers).json()
    schema = schemathesis.openapi.from_url(api.url + "/openapi.json")
    asked: Counter[int] = Counter()

    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue
        its = {"job_id": job["id"]} if "{job_id}" in operation.path else None

        @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=ANY)
        @given(case=operation.as_strategy(generation_mode=mode, path_parameters=its))
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(base_url=api.url, headers=headers)
            asked[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        ask()

    assert asked[200 if mode is GenerationMode.POSITIVE else 422] > EXAMPLES, asked
