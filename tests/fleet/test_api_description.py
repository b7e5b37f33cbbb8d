"""The OpenAPI document says of every route what it really reads and answers."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from access_support import Inside
from jsonschema import Draft202012Validator

from fleet import api
from fleet.api.examples import EXAMPLES
from fleet.rules.access import RULES, Open, Rule
from fleet.server.api import describe, routing

# Neither JSON of ours nor a body to describe: files, streams, and what pages are made of.
RAW = {
    ("GET", "/api/v1/events"),
    ("GET", "/api/v1/evidence/{sha256}"),
    ("GET", "/api/v1/files/{sha256}"),
    ("GET", "/api/v1/samples/{collection}/files/{sha256}"),
    ("PUT", "/api/v1/uploads/{sha256}"),
}
DESCRIBED = sorted(key for key in RULES if key[1].startswith(("/api/", "/v1/", "/artifacts", "/tuf")))


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    made = Inside(tmp_path_factory.mktemp("description") / "fleet")
    yield made
    made.close()


@pytest.fixture(scope="module")
def document(inside: Inside) -> Any:
    return inside.client().get("/openapi.json").json()


def refs_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (found for key, found in value.items() if key == "$ref" and isinstance(found, str))
        for one in value.values():
            yield from refs_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from refs_in(one)


def at(document: Any, ref: str) -> Any:
    found = document
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found


def validated(document: Any, schema: Any, value: Any) -> None:
    whole = {**schema, "components": document["components"]}
    Draft202012Validator(whole).validate(value)


def operations(document: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield (method.upper(), path), operation


def test_every_route_that_programs_use_is_described(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    assert sorted(key for key, _ in operations(document)) == DESCRIBED


def test_names_are_kept_whatever_functions_are_called(document: Any) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert "post_rollouts_rollout_id_verb" in names


def test_every_reference_leads_somewhere_and_every_schema_is_one(document: Any) -> None:
    for ref in set(refs_in(document)):
        assert at(document, ref), ref
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_route_says_what_it_answers(inside: Inside) -> None:
    for key, route in routing.of(inside.app).items():
        if key[1].startswith("/api/v1") and key not in RAW:
            assert describe.answered_by(route) is not None, f"{key}: annotate it with Answer[…]"
            assert (route.endpoint.__doc__ or "").strip(), f"{key}: a sentence for its description"


def test_bodies_and_answers_have_examples_that_are_right(document: Any) -> None:
    seen = 0
    for key, operation in operations(document):
        media = [operation.get("requestBody", {}), *operation["responses"].values()]
        for one in media:
            found = at(document, one["$ref"]) if "$ref" in one else one
            for kind, content in found.get("content", {}).items():
                if kind == "application/json" and "schema" in content:
                    if content["schema"].get("type") == "array" and "$ref" not in content["schema"]["items"]:
                        continue
                    assert "example" in content, f"{key}: fleet.api.examples has none of {content['schema']}"
                    validated(document, content["schema"], content["example"])
                    seen += 1
    assert seen > 100


def test_an_example_can_be_read_back() -> None:
    for kind, example in EXAMPLES.items():
        assert msgspec.json.decode(msgspec.json.encode(example), type=kind) == example


def test_an_example_that_is_wrong_is_found(document: Any) -> None:
    """What judges is judged."""
    with pytest.raises(Exception, match="'three' is not of type 'integer'"):
        validated(
            document, {"$ref": "#/components/schemas/NewBatch"}, {"count": "three", "deployments": ["d"]}
        )


def test_who_may_stands_in_it(document: Any) -> None:
    for key, operation in operations(document):
        rule = RULES[key]
        if isinstance(rule, Rule):
            assert operation["x-role"] == rule.needs.word
            assert {"token": []} in operation["security"]
        else:
            assert isinstance(rule, Open)
            assert {"token": []} not in operation["security"]
    assert operations_by(document)["POST", "/api/v1/freeze"]["security"][1] == {"session": [], "csrf": []}


def operations_by(document: Any) -> dict[tuple[str, str], Any]:
    return dict(operations(document))


def test_a_body_is_required_but_where_it_may_be_left_out(document: Any) -> None:
    by = operations_by(document)
    assert by["POST", "/api/v1/rollouts"]["requestBody"]["required"] is True
    assert by["POST", "/api/v1/rollouts/{rollout_id}/{verb}"]["requestBody"]["required"] is False
    assert "requestBody" not in by["GET", "/api/v1/rollouts"]


def test_lists_of_things_without_bound_come_in_pages(document: Any) -> None:
    for key, operation in operations(document):
        answered = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        if (
            key[0] == "GET"
            and answered.get("schema", {}).get("type") == "array"
            and key[1] != "/api/v1/audit/heads"
        ):
            names = {parameter["name"] for parameter in operation["parameters"]}
            assert {"after", "limit"} <= names or {"since", "until"} <= names, key


def test_the_document_is_json_of_a_bearable_size(document: Any) -> None:
    assert len(json.dumps(document)) < 400_000
    assert "Change" in document["components"]["schemas"]
    assert api.Change.__doc__ in document["components"]["schemas"]["Change"]["description"]
