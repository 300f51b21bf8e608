"""Drives the server at the given URL through the Python client that openapi-python-client generates.

mypy checks this file in strict mode, so that the types of the description are the ones that are used here.
"""

import sys

from agent_registry_client import Client
from agent_registry_client.api.agents import get_agent, heartbeat, list_agents, register
from agent_registry_client.api.discovery import check_health, search_capabilities
from agent_registry_client.models import (
    AgentHealth,
    AgentRecord,
    AgentStatus,
    Capability,
    Heartbeat,
    HeartbeatAck,
    HealthStatus,
    Metadata,
    Problem,
    Registration,
)

ID = "python-client"


def registration(
    agent_name: str = "Python client", base_url: str = "http://python-client:8000"
) -> Registration:
    return Registration(
        agent_id=ID,
        agent_name=agent_name,
        base_url=base_url,
        capabilities=[Capability(name="python_driving")],
        metadata=Metadata.from_dict({"team": "a"}),
    )


def use(client: Client) -> None:
    record = register.sync(client=client, body=registration())
    assert isinstance(record, AgentRecord), record
    assert (record.status, record.metadata["team"]) == (AgentStatus.ACTIVE, "a")
    assert (record.capabilities[0].description, record.capabilities[0].cost_estimate) == ("", None)
    # Fields that are always present are not unions.
    assert record.registered_at <= record.last_heartbeat and record.revision > 0 and record.load is None

    ack = heartbeat.sync(ID, client=client)
    assert isinstance(ack, HeartbeatAck) and ack.registration_tag == record.registration_tag, ack
    ack = heartbeat.sync(ID, client=client, body=Heartbeat(status=AgentStatus.BUSY, load=0.5))
    assert isinstance(ack, HeartbeatAck) and ack.status is AgentStatus.BUSY, ack

    matches = search_capabilities.sync(client=client, q="python driv", status=AgentStatus.BUSY, healthy=True)
    assert isinstance(matches, list) and [match.agent_id for match in matches] == [ID], matches
    assert matches[0].healthy and matches[0].score > 0 and matches[0].load == 0.5
    assert search_capabilities.sync(client=client, q="python driv", healthy=False) == []

    health = check_health.sync(ID, client=client)
    assert isinstance(health, AgentHealth) and health.status is HealthStatus.HEALTHY, health
    assert health.reason is None and health.seconds_since_heartbeat >= 0

    agents = list_agents.sync(client=client)
    assert isinstance(agents, list) and ID in [agent.agent_id for agent in agents], agents


def fail(client: Client) -> None:
    problem = get_agent.sync("nobody", client=client)
    assert isinstance(problem, Problem) and (problem.status, problem.errors) == (404, []), problem

    problem = register.sync(client=client, body=registration(agent_name="", base_url="nowhere"))
    assert isinstance(problem, Problem) and problem.status == 422, problem
    assert [error.field for error in problem.errors] == ["agent_name", "base_url"], problem
    assert all(error.message for error in problem.errors)


# A status that the description does not list is an error.
with Client(base_url=sys.argv[1], raise_on_unexpected_status=True) as client:
    use(client)
    fail(client)
