"""Every answer conforms to the Open Inference Protocol's own OpenAPI document, whatever schemathesis asks.

The document is not part of the project: it is read from `shared/data` beside the checkout, where that is.
"""

from pathlib import Path

import pytest
import yaml

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis comes with the dev extra")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

NAME = "open_inference_rest.yaml"
DOCUMENT = next(
    (path for folder in Path(__file__).resolve().parents if (path := folder / "shared" / "data" / NAME).is_file()), None
)  # fmt: skip
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ASKED = settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def document() -> dict:
    """As it stands, but for `${NAME}` in paths, which OpenAPI writes `{NAME}`, and with what is served here as the names."""
    read = yaml.safe_load(DOCUMENT.read_text())
    paths = {path.replace("${", "{"): described for path, described in read["paths"].items()}
    for described in paths.values():
        for parameter in described.get("parameters", ()):
            names = {"MODEL_NAME": ["digits"], "MODEL_VERSION": ["1.0.0"]}[parameter["name"]]
            parameter["schema"]["enum"] = names
    return {**read, "paths": paths}


OPERATIONS = [
    (path, method)
    for path, described in (document() if DOCUMENT is not None else {"paths": {}})["paths"].items()
    for method in described
    if method != "parameters"
]


@pytest.mark.skipif(DOCUMENT is None, reason=f"no shared/data/{NAME} beside this checkout")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_conforms(path, method, mode, module_front):
    operation = schemathesis.openapi.from_dict(document())[path][method.upper()]
    url = f"http://127.0.0.1:{module_front.port}"
    asked = []

    @ASKED
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call(base_url=url)
        asked.append(answer.status_code)
        if mode is GenerationMode.NEGATIVE and answer.status_code == 404:
            # Names of what is not here: the document says nothing of them; the error object is its own.
            assert isinstance(answer.json()["error"], str)
        else:
            case.validate_response(answer, checks=CHECKS)

    try:
        ask()
    except Unsatisfiable:
        # Nothing about a request that has no parameters can be wrong.
        assert mode is GenerationMode.NEGATIVE
        return
    assert asked
