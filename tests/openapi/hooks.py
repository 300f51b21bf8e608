"""What a schema cannot say of registrations and statuses, for schemathesis: see tests/README.md."""

import json

import schemathesis
from hypothesis import strategies as st

# A schema knows `format: uri`, and not that only http and https are taken, and hosts that can be dialled.
hosts = st.sampled_from(["agent", "agent.example.org", "10.1.2.3", "[2001:db8::7]", "feature-dev", "UPPER.example"])
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
paths = st.sampled_from(["", "/", "/v1", "/v1/agents/"])
schemathesis.openapi.format(
    "uri", st.builds(lambda scheme, *rest: f"{scheme}://" + "".join(rest), st.sampled_from(["http", "https", "HTTP"]), hosts, ports, paths)
)


@schemathesis.hook
def filter_query(context, query):
    """A search needs a letter or a digit: `\\p{L}` is not known to every reader of a schema."""
    q = query.get("q") if isinstance(query, dict) else None
    return not (isinstance(q, str) and q and not any(letter.isalnum() for letter in q))


def searches_for_nothing(case):
    """A search needs words or a capability's name; a schema of parameters cannot say that one of two is required."""
    query = case.query or {}
    return case.path == "/capabilities/search" and not (query.get("q") or query.get("capability"))


@schemathesis.hook
def filter_case(context, case):
    """Names are distinct within an agent, and a health path has no dots as segments; metadata has no NUL in any depth, and up to 16 KiB. An age and an end are those of
    an instance, and a process that was shut down is offline. A heartbeat's body may be left out, and `null` counts as left
    out: saying so in the schema would make generated clients send a body that they do not have."""
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
