"""Any request that /openapi.json allows, and many that it does not, get what it promises (by Schemathesis)."""

import pytest
from hypothesis import HealthCheck, given, settings

from phrase_loc.web.app import create_app
from tests.web.conftest import LIMITS

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

QUESTIONS = [
    ("POST", "/api/look"),
    ("POST", "/api/localize"),
    ("POST", "/api/words-at"),
    ("POST", "/api/chips"),
    ("POST", "/api/phrases"),
    ("GET", "/api/label-studio/health"),
    ("POST", "/api/label-studio/setup"),
    ("GET", "/api/label-studio/versions"),
    ("POST", "/api/label-studio/predict"),
    ("POST", "/api/label-studio/webhook"),
    ("POST", "/api/cvat"),
    ("POST", "/api/export"),
    ("POST", "/api/masks"),
    ("GET", "/api/image/{key}"),
    ("GET", "/api/model"),
    ("GET", "/healthz"),
]


@pytest.fixture(scope="module")
def described(tiny_localizer):
    """The API's own description, with the application that must keep to it."""
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(tiny_localizer, LIMITS))


def test_every_question_is_tried(described):
    found = [result.ok() for result in described.get_all_operations()]
    assert {(o.method.upper(), o.path) for o in found} == set(QUESTIONS)


@pytest.mark.parametrize(
    ("method", "path", "wrong"),
    [(*q, False) for q in QUESTIONS] + [(*q, True) for q in QUESTIONS if q[0] == "POST"],  # GET takes nothing
)
def test_answers_are_as_described(described, method, path, wrong):
    """No failure of the server, no status or content type but those described, every body of its schema."""
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    kept = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    mode = GenerationMode.NEGATIVE if wrong else GenerationMode.POSITIVE

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def holds(case):
        case.call_and_validate(checks=[not_a_server_error, *kept])

    holds()
