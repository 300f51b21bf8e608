"""Checks cards and delegation with the client and the agents of the official Python SDK: client.py PROGRAMS_DIR SCRATCH_DIR"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers import get_message_text, new_text_message
from a2a.types import AgentCard, AgentSkill, Role, SendMessageRequest
from google.protobuf.json_format import MessageToJson

from agents import Agent, Rejection

CARD_PATH = "/.well-known/agent-card.json"
PROGRAMS, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:])


@contextmanager
def running(name: str, *arguments: str, address: str, **environment: str) -> Iterator[str]:
    """Runs a program, and yields its URL, which the pattern `address` finds in the program's output."""
    process = subprocess.Popen(
        [PROGRAMS / name, *arguments], env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    try:
        output = ""
        while not (found := re.search(address, output)):
            line = process.stdout.readline()
            assert line, f"{name} has ended:\n{output}"
            output += line
        # The rest of the output is short enough for the pipe.
        yield f"http://{found[1]}"
    finally:
        process.terminate()
        process.wait()


def run(name: str, *arguments: str, registry: str) -> bytes:
    done = subprocess.run([PROGRAMS / name, *arguments], env=os.environ | {"REGISTRY_URL": registry}, capture_output=True)
    assert done.returncode == 0, (name, arguments, done.stderr.decode())
    return done.stdout


def passed(statement: str) -> None:
    print(f"ok: {statement}", flush=True)


async def read_cards(agent: str, registry: str) -> None:
    """Reads the card of our agent with the official client."""
    async with httpx.AsyncClient() as http:
        served = await A2ACardResolver(http, agent).get_agent_card()
        assert [skill.id for skill in served.skills] == ["find_recipe"], served
        passed("the official client reads the card that an agent on axum serves")
        stored = await A2ACardResolver(http, registry, "/agents/recipes/card").get_agent_card()
        assert stored == served, (stored, served)
        raw = [await http.get(url) for url in [agent + CARD_PATH, f"{registry}/agents/recipes/card"]]
        assert raw[0].content == raw[1].content, raw
        passed("the official client reads the same card, byte for byte, from the registry")
    client = ClientFactory(ClientConfig(streaming=False, supported_protocol_bindings=["HTTP+JSON"])).create(stored)
    async with client:
        message = new_text_message("What can I cook with leeks?", role=Role.ROLE_USER)
        answers = [answer async for answer in client.send_message(SendMessageRequest(message=message))]
    assert "Leek soup" in get_message_text(answers[0].message), answers
    passed("the official client sends that agent a message, and gets the answer")


def import_card(agent: Agent, sentence: str, registry: str) -> None:
    """Imports an agent of the official SDK by its URL."""
    run("registryctl", "import", agent.url, registry=registry)
    original = httpx.get(agent.url + CARD_PATH).content
    assert httpx.get(f"{registry}/agents/{agent.agent_id}/card").content == original
    assert run("registryctl", "card", agent.agent_id, registry=registry).rstrip(b"\n") == original
    found = json.loads(run("registryctl", "search", sentence, "--json", registry=registry))
    assert found[0]["agent_id"] == agent.agent_id, found
    interface = agent.card.supported_interfaces[0]
    protocol = f"{interface.protocol_binding} {interface.protocol_version}"
    passed(f"{agent.agent_id} ({protocol}) is imported, its card comes back byte for byte, and a sentence finds it")


def import_file(card: AgentCard, registry: str) -> None:
    file = SCRATCH / "card.json"
    file.write_text(MessageToJson(card))
    run("registryctl", "import", str(file), registry=registry)


def delegate(question: str, registry: str) -> list[str]:
    """Delegates a question. Returns a line for each failed attempt, and then one with the answer."""
    return run("examples/delegate_to_a2a", question, registry=registry).decode().splitlines()


def check_health(agent: Agent, health_path: str | None, registry: str) -> None:
    """Checks how an agent of the official SDK responds to probes."""
    record = httpx.get(f"{registry}/agents/{agent.agent_id}").json()
    assert record.get("health_path") == health_path, record
    base_url = record["base_url"].rstrip("/")
    assert httpx.get(f"{base_url}/health").status_code == 404
    if health_path:
        assert httpx.get(base_url + health_path).status_code == 200
    passed(f"{agent.agent_id} answers 404 to /health{', and 200 to the path of its card' if health_path else ''}")


def main(registry: str) -> None:
    with running("examples/a2a_agent", address="works at http://(.*)", REGISTRY_URL=registry) as agent:
        # The agent registers in the background.
        run("registryctl", "wait", "find_recipe", registry=registry)
        asyncio.run(read_cards(agent, registry))
        assert delegate("What can I cook with leeks?", registry)[-1].startswith("recipes (completed): Leek soup")
        passed("a task is delegated to that agent")

    route = "How do I get from Oslo to Bergen by train?"
    router = Agent("Route Agent", AgentSkill(
        id="plan_route", name="Routes", description="Plans a route between two places", tags=["travel"],
        examples=["How do I get to Bergen?"],
    ))
    rain = "Will it rain tomorrow?"
    forecaster = Agent("Weather Agent", AgentSkill(
        id="forecast", name="Forecast", description="Forecasts the weather", tags=["weather"], examples=[rain],
    ), binding="HTTP+JSON")
    contract = "Where is the contract of 1998?"
    archivist = Agent("Archive Agent", AgentSkill(
        id="find_document", name="Documents", description="Finds documents", tags=["documents"], examples=[contract],
    ), version="0.3")
    for agent, question in [(router, route), (forecaster, rain), (archivist, contract)]:
        import_card(agent, question, registry)
        answer = f"{agent.agent_id} (completed): {agent.card.name} has done: {question}"
        assert (lines := delegate(question, registry)) == [answer], lines
        assert agent.work.polls >= 2
        passed(f"a long task is delegated to {agent.agent_id}, polled {agent.work.polls} times, and done")

    dead = AgentCard()
    dead.CopyFrom(router.card)
    dead.name = "Dead Agent"
    dead.skills[0].examples[:] = [route]
    # Nobody listens on this port.
    dead.supported_interfaces[0].url = "http://127.0.0.1:1/"
    import_file(dead, registry)
    lines = delegate(route, registry)
    assert lines[0].startswith("before: dead-agent: ") and lines[1].startswith("route-agent (completed): "), lines
    passed("a task fails over to the next agent if the best one is dead")

    translation = "Translate our release notes into Norwegian"
    skill = AgentSkill(id="translate", name="Translations", description="Translates", tags=["languages"], examples=[translation])
    fussy = Agent("Fussy Translator", skill, work=Rejection)
    import_card(fussy, translation, registry)
    skill.examples[:] = ["Translate a letter"]
    patient = Agent("Patient Translator", skill, binding="HTTP+JSON")
    run("registryctl", "import", patient.url, registry=registry)
    lines = delegate(translation, registry)
    assert lines[0].startswith("before: fussy-translator: ") and "not my kind of task" in lines[0], lines
    assert lines[1].startswith("patient-translator (completed): "), lines
    passed("a task goes to the next agent if the best one rejects it")
    for agent in [router, archivist]:
        check_health(agent, CARD_PATH, registry)
    # Its card is not below its `base_url`, so it cannot be the health path.
    check_health(forecaster, None, registry)


with running(
    "registry-server", "--listen", "127.0.0.1:0", "--database-url", f"sqlite://{SCRATCH}/registry.db", "--log-format", "json",
    address='"local_addr":"([^"]*)"',
) as registry_url:
    main(registry_url)
print(f"all checked with a2a-sdk {version('a2a-sdk')}")
