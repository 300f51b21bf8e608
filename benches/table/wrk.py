"""Load with wrk, on one thread and any number of connections."""

import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOAD = Path(__file__).resolve().parents[1] / "load"
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass
class Measured:
    """Requests a second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def command(url, script, connections, seconds):
    at = [url] if script is None else ["-s", LOAD / script, url]
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *at]


def environment(settings):
    return os.environ | {name: str(value) for name, value in settings.items()}


def wrk(url, script=None, connections=64, seconds=3, **settings):
    """Loads a server. Fails if a response is not a success."""
    run = subprocess.run(
        command(url, script, connections, seconds), env=environment(settings), capture_output=True, text=True, check=True
    )
    return read(run.stdout, url)


def wrk_side_by_side(urls, script, connections, seconds, **settings):
    """Loads several servers concurrently, and returns the sum of their rates."""
    runs = [
        subprocess.Popen(command(url, script, connections, seconds), env=environment(settings), stdout=subprocess.PIPE, text=True)
        for url in urls
    ]
    return sum(read(run.communicate()[0], url).rate for run, url in zip(runs, urls))


@contextmanager
def flood(url, connections):
    """Loads a server until the block ends, regardless of its responses."""
    run = subprocess.Popen(command(url, None, connections, 600), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        run.terminate()
        run.wait()


def read(text, url):
    if wrong := re.search(r"Non-2xx.*|Socket errors.*", text):
        raise SystemExit(f"{url}: {wrong.group()}")

    def latency(share):
        number, unit = re.search(rf" {share}% +([\d.]+)(us|ms|s)", text).groups()
        return float(number) * UNITS[unit]

    return Measured(float(re.search(r"Requests/sec: +([\d.]+)", text).group(1)), latency(50), latency(99))
