"""Measures the table of figures and targets, and draws the plots. `scripts/bench` runs this."""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from . import lines, servers
from .servers import ROOT

SCRATCH = Path(os.environ["SCRATCH"])
AT_MOST = {10_000: (64, 0.2), 100_000: (300, 1)}


def database(name, schema=None):
    """Creates a PostgreSQL database, and returns its URL."""
    psql, url = Path(os.environ["POSTGRES_BIN"]) / "psql", os.environ["POSTGRES_URL"]
    subprocess.run([psql, "-q", url, "-c", f"CREATE DATABASE {name}"], check=True)
    url = url.rsplit("/", 1)[0] + "/" + name
    if schema is not None:
        subprocess.run([psql, "-q", url, "-f", schema], check=True)
    return url


def both(name, port, program=servers.REGISTRY):
    """Returns our server on both databases."""
    return {
        "PostgreSQL": servers.registry(f"{name} on PostgreSQL", port, database(name), program),
        "SQLite": servers.registry(f"{name} on SQLite", port + 1, f"sqlite://{SCRATCH}/{name}.db", program),
    }


def settle(*some):
    """Runs the maintenance now that PostgreSQL would otherwise run during the measurements, because of the many new rows."""
    for server in some:
        url = server["PostgreSQL"].command[-1]
        subprocess.run([Path(os.environ["POSTGRES_BIN"]) / "psql", "-q", url, "-c", "VACUUM ANALYZE", "-c", "CHECKPOINT"], check=True)


def machine():
    model = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}"


def rust(table):
    """Runs the benchmarks in Rust, which print lines of `name figure`."""
    wanted = {
        "check_health_ratio": ("check_health of the SDK vs. plain reqwest", 0.95, "", False),
        "loop_bytes": ("memory of one of 10,000 heartbeat loops", 6 * 1024, " B", True),
        "loops_core_percent": ("CPU use of 10,000 loops at 30 s intervals, of a core", 3, " %", True),
        "loops_burst": ("heartbeats in their busiest second vs. the mean", 1.5, "", True),
    }
    for bench in ["check_health", "loops"]:
        run = ["cargo", "bench", "--locked", "--quiet", "--bench", bench]
        printed = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        for name, figure in (line.split()[:2] for line in printed.splitlines() if line.split()[:1] and line.split()[0] in wanted):
            what, limit, unit, most = wanted[name]
            table.add(what, "", float(figure), limit, "", unit=unit, most=most)


def measure(table, arguments, running):
    def start(*some):
        for server in some:
            running.append(server)
            server.start()

    ours, bare = both("small", 18_310), servers.bare(18_300)
    large = both("large", 18_320)
    start(bare, *ours.values())
    for server in ours.values():
        servers.fill(server, 10_000)
    settle(ours)
    # Before other servers start, since their queries would add to PostgreSQL's CPU time.
    lines.open_loop(table, ours, int(os.environ["POSTGRES_PID"]))
    if arguments.before:
        before = both("before", 18_315, arguments.before)
        start(*before.values())
        for server in before.values():
            servers.fill(server, 10_000)
        lines.under_a_flood(table, ours, before)
        for server in before.values():
            server.stop()
    start(*large.values())
    for server in large.values():
        servers.fill(server, 100_000)
    settle(ours, large)

    lines.against_the_ceiling(table, ours, bare)
    lines.lists(table, ours)
    lines.sentences(table, ours)
    if arguments.nacos:
        nacos = servers.nacos(18_330, arguments.nacos, SCRATCH)
        start(nacos)
        servers.fill_nacos(nacos)
        lines.against_nacos(table, ours, nacos)
        nacos.stop()
    else:
        print("r-nacos is not installed, and its lines are skipped. --peers installs it.")
    lines.at_a_hundred_thousand(table, ours, large)
    loads = lines.by_load(table, ours)
    others = [servers.registry("replica", port, ours["PostgreSQL"].command[-1]) for port in [18_341, 18_342]]
    start(*others)
    lines.replicas(table, ours["PostgreSQL"], others)
    for server in others:
        server.stop()
    for agents, some in {10_000: ours, 100_000: large}.items():
        lines.memory(table, some, agents, AT_MOST[agents][0])
    for agents, some in {10_000: ours, 100_000: large}.items():
        lines.starts(table, some, agents, AT_MOST[agents][1])
    python = servers.python(18_350, database("python", ROOT / "benches/baseline/schema.sql"), Path(sys.executable).parent)
    start(python)
    servers.fill(python, 10_000)
    lines.against_python(table, ours, python)
    python.stop()
    for server in running:
        server.stop()
    if arguments.plots:
        from . import plots

        sizes = lines.by_agents(table, lambda agents: both(f"with_{agents}", 18_360))
        plots.throughput(sizes, ROOT / "benches/throughput.png")
        plots.latency(loads, ROOT / "benches/latency.png")
        for curves in [sizes, loads]:
            for name, points in curves.items():
                print(name, points)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--nacos", type=Path, help="the program of r-nacos")
    parser.add_argument("--before", type=Path, help="the program of an older server")
    parser.add_argument("--plots", action="store_true")
    arguments = parser.parse_args()
    print(machine())
    table, running = lines.Table(arguments.rounds, arguments.seconds), []
    try:
        measure(table, arguments, running)
        rust(table)
    finally:
        for server in running:
            server.stop()
    missed = [line for line in table.lines if not line.is_met()]
    print(f"{len(table.lines) - len(missed)} of {len(table.lines)} lines are met")


main()
