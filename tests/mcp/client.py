"""Drives `registryctl mcp` with the official Python client of the Model Context Protocol: client.py PROGRAMS_DIR

The client validates every structured result against the tool's output schema.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import anyio
from jsonschema import Draft202012Validator
from mcp import Client, MCPError, StdioServerParameters

FOLDER = Path(sys.argv[1]).resolve()
READ_ONLY = ["search_agents", "list_agents", "get_agent", "check_health"]


def new_token(name: str, scope: str, tokens_file: Path) -> str:
    """Adds a token to a tokens file, and returns the token."""
    made = subprocess.run(
        [FOLDER / "registry-server", "token", "new", "--name", name, "--scope", scope],
        capture_output=True, text=True, check=True,
    )
    with tokens_file.open("a") as file:
        file.write(made.stdout)
    return made.stderr.split("The token, shown only once: ")[1].split()[0]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Registry:
    """A registry that can be restarted at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokens_file = folder / "tokens.toml"
        self.admin = new_token("admin", "admin", tokens_file)
        self.reader = new_token("reader", "read", tokens_file)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.folder / "server.log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [
                    FOLDER / "registry-server", "--listen", f"127.0.0.1:{self.port}", "--heartbeat-timeout", "1h",
                    "--database-url", f"sqlite://{self.folder}/registry.db", "--tokens-file", self.folder / "tokens.toml",
                ],
                stderr=file,
            )
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health").close()
                return
            except OSError:
                assert self.process.poll() is None, log.read_text()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def register(self, registration: dict[str, object]) -> None:
        request = urllib.request.Request(
            f"{self.url}/register", json.dumps(registration).encode(),
            {"Authorization": f"Bearer {self.admin}", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()


class Agent:
    """An agent that reviews code, or hangs if the task has `hang`."""

    def __init__(self) -> None:
        agent = self
        self.hanging = threading.Event()
        self.disconnected = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if task.get("hang"):
                    agent.hanging.set()
                    # Returns when the sender closes the connection.
                    self.connection.recv(1)
                    agent.disconnected.set()
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"mistakes": 0, "of": task}).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()


def server(registry: Registry, *options: str, token: str | None = None) -> StdioServerParameters:
    environment = {"REGISTRY_URL": registry.url, "REGISTRY_TOKEN": token or registry.reader}
    return StdioServerParameters(command=str(FOLDER / "registryctl"), args=["mcp", *options], env=environment)


async def call(client: Client, tool: str, **arguments: object) -> dict[str, object]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


async def error_of(client: Client, tool: str, **arguments: object) -> str:
    """Calls a tool that has to fail. Returns the error."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result
    return result.content[0].text


async def check_tools(client: Client, expected: list[str]) -> None:
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == expected, tools
    for tool in tools:
        Draft202012Validator.check_schema(tool.input_schema)
        Draft202012Validator.check_schema(tool.output_schema)
        assert tool.annotations.read_only_hint == (tool.name != "delegate_task")


async def check_read_only_tools(client: Client) -> None:
    """Calls each read-only tool, and checks the results."""
    found = await call(client, "search_agents", query="Who can look for mistakes in my code?", healthy=True)
    assert [agent["agent_id"] for agent in found["agents"]] == ["reviewer"], found
    listed = await call(client, "list_agents", limit=1)
    assert listed["agents"][0]["agent_id"] == "reviewer" and listed["next_cursor"], listed
    rest = await call(client, "list_agents", limit=1, cursor=listed["next_cursor"])
    assert rest["agents"][0]["agent_id"] == "translator" and "next_cursor" not in rest, rest
    shown = await call(client, "get_agent", agent_id="reviewer")
    assert shown["metadata"] == {"team": "platform"}, shown
    health = await call(client, "check_health", agent_id="reviewer")
    assert health["healthy"] is True, health
    assert "search_agents" in await error_of(client, "get_agent", agent_id="nobody")
    assert "`limit`" in await error_of(client, "search_agents", query="code", limit=100)


async def check_outage(client: Client, registry: Registry) -> None:
    """Checks that calls fail while the registry is unavailable, and work again afterwards."""
    registry.stop()

    async def check_failure(tool: str, **arguments: object) -> None:
        reason = await error_of(client, tool, **arguments)
        assert registry.url in reason and "try again later" in reason, reason

    async with anyio.create_task_group() as calls:
        calls.start_soon(lambda: check_failure("search_agents", query="code"))
        calls.start_soon(lambda: check_failure("list_agents"))
        calls.start_soon(lambda: check_failure("get_agent", agent_id="reviewer"))
        calls.start_soon(lambda: check_failure("check_health", agent_id="reviewer"))
    registry.start()
    await check_read_only_tools(client)


async def delegate(client: Client, agent: Agent) -> None:
    task = {"task": "Look for mistakes in this code", "path": "/execute"}
    done = await call(client, "delegate_task", body={"code": "x"}, **task)
    assert (done["agent_id"], done["status"]) == ("reviewer", 200), done
    assert done["response"] == {"mistakes": 0, "of": {"code": "x"}}, done
    assert "no agent" in await error_of(client, "delegate_task", capability="brew_coffee", path="/", body={})
    agent.hanging.clear()
    agent.disconnected.clear()
    async with anyio.create_task_group() as calls:
        calls.start_soon(lambda: client.call_tool("delegate_task", {"body": {"hang": True}, **task}))
        await anyio.to_thread.run_sync(agent.hanging.wait)
        calls.cancel_scope.cancel()
    # `registryctl` was notified, and has dropped the task.
    await anyio.to_thread.run_sync(agent.disconnected.wait)


async def drive(registry: Registry, agent: Agent) -> None:
    registry.start()
    registry.register({
        "agent_id": "reviewer", "agent_name": "Reviewer", "base_url": agent.url, "metadata": {"team": "platform"},
        "capabilities": [{"name": "code_review", "tags": ["rust"], "examples": ["Look for mistakes in this code"]}],
    })
    registry.register({
        "agent_id": "translator", "agent_name": "Translator", "base_url": "http://translator:8000",
        "capabilities": [{"name": "translation"}],
    })
    # `auto` begins with `server/discover`, `legacy` with `initialize`.
    for mode in ["auto", "legacy"]:
        async with Client(server(registry), mode=mode) as client:
            await check_tools(client, READ_ONLY)
            await check_read_only_tools(client)
            await check_outage(client, registry)
            try:
                await client.call_tool("delegate_task", {"task": "x", "path": "/", "body": {}})
                raise AssertionError("delegate_task was called without --allow-delegation")
            except MCPError as error:
                assert "--allow-delegation" in str(error), error
            print(f"protocol {client.protocol_version}: reading, an outage, and no delegation: ok")
        async with Client(server(registry, "--allow-delegation"), mode=mode) as client:
            await check_tools(client, [*READ_ONLY, "delegate_task"])
            await delegate(client, agent)
            print(f"protocol {client.protocol_version}: delegation, and a cancelled one: ok")
        async with Client(server(registry, token="wrong"), mode=mode) as client:
            reason = await error_of(client, "list_agents")
            assert "401" in reason and "REGISTRY_TOKEN" in reason, reason
            print(f"protocol {client.protocol_version}: a refused token: ok")
    # A client may start before its registry.
    registry.stop()
    async with Client(server(registry)) as client:
        await check_tools(client, READ_ONLY)
        assert "try again later" in await error_of(client, "list_agents")
        registry.start()
        await check_read_only_tools(client)
    print(f"registry unavailable at the start: ok (client: mcp {version('mcp')})")


async def main(folder: Path) -> None:
    registry = Registry(folder)
    try:
        await drive(registry, Agent())
    finally:
        registry.stop()


with tempfile.TemporaryDirectory() as scratch:
    anyio.run(main, Path(scratch))
