"""The measured servers, each of which is a process that is started, filled with agents, and stopped."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from .wrk import wrk

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target/release"
REGISTRY = RELEASE / "registry-server"


class Server:
    """A server process that listens at `url`."""

    def __init__(self, name, port, command, environment=None, folder=None):
        self.name, self.url, self.command = name, f"http://127.0.0.1:{port}", command
        self.environment, self.folder, self.process = environment or {}, folder, None

    def start(self, path="/health"):
        """Starts the server, and returns the time until its first response."""
        began = time.monotonic()
        log = open(Path(os.environ["SCRATCH"]) / "servers.log", "ab")
        self.process = subprocess.Popen(
            self.command, env=os.environ | self.environment, cwd=self.folder, stdout=log, stderr=log
        )
        while True:
            try:
                urllib.request.urlopen(self.url + path, timeout=5).read()
                return time.monotonic() - began
            except urllib.error.HTTPError:
                return time.monotonic() - began
            except OSError:
                if self.process.poll() is not None or time.monotonic() > began + 60:
                    raise SystemExit(f"{self.name} does not start: {' '.join(map(str, self.command))}")
                time.sleep(0.002)

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def resident(self):
        """Returns the current and the maximum resident memory, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        field = lambda name: int(status.split(name + ":")[1].split()[0]) / 1024
        return field("VmRSS"), field("VmHWM")

    def get(self, path):
        return json.load(urllib.request.urlopen(self.url + path))


def registry(name, port, database, program=REGISTRY):
    command = [program, "--listen", f"127.0.0.1:{port}", "--database-url", database]
    return Server(name, port, command)


def bare(port):
    return Server("bare", port, [RELEASE / "examples/bare_route", f"127.0.0.1:{port}"])


def python(port, database, bin_folder):
    command = [bin_folder / "uvicorn", "app:app", "--workers", "2", "--port", str(port), "--no-access-log", "--log-level", "error"]
    return Server("python", port, command, {"DATABASE_URL": database}, ROOT / "benches/baseline")


def nacos(port, program, folder):
    environment = {
        "RNACOS_HTTP_PORT": str(port),
        "RNACOS_GRPC_PORT": str(port + 1000),
        "RNACOS_HTTP_CONSOLE_PORT": str(port + 2000),
        "RNACOS_DATA_DIR": str(folder),
    }
    return Server("r-nacos", port, [program], environment, folder)


def fill(server, agents):
    """Registers agents up to a number."""
    while (there := len(server.get("/agents")) if server.name == "python" else server.get("/stats")["total_agents"]) < agents:
        wrk(server.url, "register.lua", seconds=max(1, min(5, (agents - there) // 8_000)), AGENTS=agents, FIRST=there)


def fill_nacos(server):
    while server.get("/nacos/v1/ns/instance/list?serviceName=svc99").get("hosts", [])[99:] == []:
        wrk(server.url, "nacos_seed.lua", seconds=2)
