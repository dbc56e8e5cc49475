"""schemathesis: whatever the OpenAPI page allows, and what it does not; never a 500.

Nothing else is held against the page: bodies are checked beyond what JSON schema can say, so a body
that fits it may be refused.
"""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from live import URL
from schemathesis import Case
from schemathesis.checks import not_a_server_error

schema = schemathesis.openapi.from_url(f"{URL}/openapi.json")


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_route_fails(case: Case) -> None:
    case.call_and_validate(checks=[not_a_server_error], timeout=60)
