"""Rules for registrations and statuses that a schema cannot express, for schemathesis: see tests/README.md."""

import json

import schemathesis
from hypothesis import strategies as st

# A schema has `format: uri`, but cannot express that only http and https are accepted, and only hosts that can be connected to.
hosts = st.sampled_from(["agent", "agent.example.org", "10.1.2.3", "[2001:db8::7]", "feature-dev", "UPPER.example"])
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
paths = st.sampled_from(["", "/", "/v1", "/v1/agents/"])
schemathesis.openapi.format(
    "uri", st.builds(lambda scheme, *rest: f"{scheme}://" + "".join(rest), st.sampled_from(["http", "https", "HTTP"]), hosts, ports, paths)
)


@schemathesis.hook
def filter_query(context, query):
    """A search needs a letter or a digit. Not every schema parser supports `\\p{L}`."""
    q = query.get("q") if isinstance(query, dict) else None
    return not (isinstance(q, str) and q and not any(letter.isalnum() for letter in q))


def searches_for_nothing(case):
    """A search needs words or the name of a capability. A schema of parameters cannot express that one of two is required."""
    query = case.query or {}
    return case.path == "/capabilities/search" and not (query.get("q") or query.get("capability"))


@schemathesis.hook
def filter_case(context, case):
    """Skips cases that violate rules outside the schema: distinct names within an agent, no dot segments in a health path, no NUL in the
    metadata and at most 16 KiB of it, an age and `final` only with an instance, and `final` only with the status offline. Also skips
    heartbeats without a body, and treats `null` as a missing field: expressing that in the schema would make generated clients send a body."""
    if searches_for_nothing(case):
        return False
    body = case.body
    if body is None and case.path.endswith("/heartbeat"):
        return False
    if isinstance(body, dict) and body.get("instance_id") is None:
        if body.get("instance_age_seconds") is not None or body.get("final"):
            return False
    if isinstance(body, dict) and body.get("final") and body.get("status") != "offline":
        return False
    path = body.get("health_path") if isinstance(body, dict) else None
    if isinstance(path, str) and {".", ".."} & set(path.lower().replace("%2e", ".").split("/")):
        return False
    metadata = json.dumps(body.get("metadata")) if isinstance(body, dict) else ""
    if "\\u0000" in metadata or len(metadata) > 16 * 1024:
        return False
    capabilities = body.get("capabilities") if isinstance(body, dict) else None
    if not isinstance(capabilities, list):
        return True
    names = [one["name"] for one in capabilities if isinstance(one, dict) and isinstance(one.get("name"), str)]
    return len(names) == len(set(names))
