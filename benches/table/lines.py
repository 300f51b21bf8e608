"""The lines of the table: measurements, comparisons and targets."""

from dataclasses import dataclass
from statistics import median

from .open_loop import OpenLoop
from .servers import fill
from .wrk import flood, wrk, wrk_side_by_side

SEARCH = "/capabilities/search?q=security"
# Seven of its fifteen words are in thousands of capabilities.
SENTENCE = "/capabilities/search?match=best&q=" + "Which of you can review some Python code and then translate the reports for us?".replace(" ", "+")


@dataclass
class Line:
    """A figure with its target: a minimum or, if `most`, a maximum."""

    what: str
    database: str
    figure: float
    wanted: float
    detail: str
    unit: str = ""
    most: bool = False

    def is_met(self):
        return self.figure < self.wanted if self.most else self.figure >= self.wanted


class Table:
    """Measures loads. Compared loads alternate round by round, and the result is the median of the ratios of all rounds."""

    def __init__(self, rounds, seconds):
        self.rounds, self.seconds, self.lines = rounds, seconds, []

    def add(self, *arguments, **options):
        line = Line(*arguments, **options)
        self.lines.append(line)
        print(f"{'ok  ' if line.is_met() else 'MISS'} {line.what:58} {line.database:11} {line.figure:10.2f}{line.unit:5}"
              f" {'<' if line.most else '>='} {line.wanted:<6g} {line.detail}", flush=True)

    def in_turns(self, loads):
        """Measures several loads alternately, and returns lists of their rates by name."""
        rates = {name: [] for name in loads}
        for _ in range(self.rounds):
            for name, load in loads.items():
                rates[name].append(load().rate)
        return rates

    def compare(self, what, ours, other, wanted):
        """Compares our loads, by database, with another load. `wanted` is the minimum ratio."""
        rates = self.in_turns({"other": other} | ours)
        for database in ours:
            ratio = median(mine / base for mine, base in zip(rates[database], rates["other"]))
            self.add(what, database, ratio, wanted[database] if isinstance(wanted, dict) else wanted, self.detail(rates, database))

    @staticmethod
    def detail(rates, database):
        return f"{median(rates[database]):,.0f}/s vs. {median(rates['other']):,.0f}/s"

    def load(self, server, script, connections=64, **settings):
        return lambda: wrk(server.url, script, connections, self.seconds, **settings)

    def search(self, server):
        return lambda: wrk(server.url + SEARCH, None, 64, self.seconds)


def against_the_ceiling(table, ours, bare):
    heartbeats = {database: table.load(server, "heartbeat.lua") for database, server in ours.items()}
    wanted = {"PostgreSQL": 0.5, "SQLite": 0.6}
    table.compare("heartbeats vs. a bare route", heartbeats, table.load(bare, "heartbeat.lua"), wanted)
    for path, wanted in [("/health/", 0.8), ("/agents/", 0.75)]:
        reads = {database: table.load(server, "read.lua", AT=path) for database, server in ours.items()}
        table.compare(f"GET {path}{{id}} vs. a bare route", reads, table.load(bare, "read.lua", AT=path), wanted)


def open_loop(table, ours, postgres):
    """CPU time of heartbeats at a fixed rate, in the server and its database, relative to the cheapest read on the same connections."""
    wanted = {"PostgreSQL": 1.8, "SQLite": 1.4}
    for rate in [333, 3_333]:
        rounds = {database: [] for database in ours}
        for _ in range(table.rounds):
            for database, server in ours.items():
                processes = {server.process.pid, postgres} if database == "PostgreSQL" else {server.process.pid}
                with OpenLoop(server.url, 2_000) as loop:
                    load = lambda *request: loop.measure(*request, rate, 2 * table.seconds, processes)
                    rounds[database].append((load("POST", "/agents/agent-{}/heartbeat"), load("GET", "/health")))
        for database, measured in rounds.items():
            ratio = median(heartbeat.cost / read.cost for heartbeat, read in measured)
            middle = lambda field: median(getattr(heartbeat, field) for heartbeat, _ in measured)
            detail = f"{middle('cost'):.0f} µs vs. {median(read.cost for _, read in measured):.0f} µs"
            detail += f", p50 {middle('p50'):.1f} ms, p99 {middle('p99'):.1f} ms"
            what = f"CPU time of a heartbeat at {rate:,}/s, relative to a small read"
            table.add(what, database, ratio, wanted[database], detail, most=True)


def under_a_flood(table, ours, before):
    """Latency of heartbeats while clients send four times as many searches as may wait, compared with an older server."""
    for database, server in ours.items():
        ratios, latencies = [], []
        for _ in range(table.rounds):
            p99 = {}
            for name, flooded in [("now", server), ("before", before[database])]:
                with OpenLoop(flooded.url, 500) as loop, flood(flooded.url + SEARCH, 1_024):
                    p99[name] = loop.measure("POST", "/agents/agent-{}/heartbeat", 333, 2 * table.seconds, set()).p99
            ratios.append(p99["now"] / p99["before"])
            latencies.append(p99)
        middle = lambda name: median(p99[name] for p99 in latencies)
        detail = f"{middle('now'):.0f} ms vs. {middle('before'):.0f} ms"
        table.add("p99 of heartbeats in a flood of searches, vs. the older server", database, median(ratios), 0.5, detail, most=True)


def against_nacos(table, ours, nacos):
    heartbeats = {database: table.load(server, "heartbeat.lua") for database, server in ours.items()}
    wanted = {"PostgreSQL": 1.6, "SQLite": 2}
    table.compare("heartbeats vs. r-nacos", heartbeats, table.load(nacos, "nacos_beat.lua"), wanted)
    searches = {database: table.search(server) for database, server in ours.items()}
    table.compare("a search with 100 matches vs. a list of 100 in r-nacos", searches, table.load(nacos, "nacos_list.lua"), 2)


def against_python(table, ours, python):
    for what, settings, wanted in [("unchanged", {}, 8), ("changed", {"CHANGE": 1}, 4)]:
        registrations = {database: table.load(server, "register.lua", **settings) for database, server in ours.items()}
        other = table.load(python, "register.lua", **settings)
        table.compare(f"POST /register, {what}, vs. the Python service", registrations, other, wanted)


def lists(table, ours):
    for database, server in ours.items():
        before = server.resident()[0]
        measured = wrk(server.url + "/agents", None, 4, table.seconds)
        now = server.resident()[0]
        table.add("GET /agents of 10,000, 4 connections", database, measured.rate, 40, f"p99 {measured.p99:.0f} ms", "/s")
        table.add("  resident memory that this adds", database, now - before, 8, f"{before:.0f} to {now:.0f} MiB", " MiB", most=True)


def sentences(table, ours):
    for database, server in ours.items():
        measured = wrk(server.url + SENTENCE, None, 64, table.seconds)
        table.add("searches for a sentence of 15 words", database, measured.rate, 3_000, f"p99 {measured.p99:.0f} ms", "/s")


def at_a_hundred_thousand(table, ours, large):
    for database, server in ours.items():
        heartbeats = {database: table.load(large[database], "heartbeat.lua", AGENTS=100_000)}
        table.compare("heartbeats with 100,000 agents vs. 10,000", heartbeats, table.load(server, "heartbeat.lua"), 0.85)
        table.compare("a search with 100 matches with 100,000 agents vs. 10,000", {database: table.search(large[database])}, table.search(server), 0.9)


def replicas(table, first, others):
    """Compares one server with three, with the same number of connections in all."""
    alone, together = [], []
    urls = [server.url for server in [first, *others]]
    for _ in range(table.rounds):
        alone.append(wrk(first.url, "heartbeat.lua", 64, table.seconds).rate)
        together.append(wrk_side_by_side(urls, "heartbeat.lua", 22, table.seconds))
    ratio = median(all / one for all, one in zip(together, alone))
    table.add("heartbeats on three replicas vs. one", "PostgreSQL", ratio, 1, f"{median(together):,.0f}/s vs. {median(alone):,.0f}/s")


def by_load(table, ours):
    """Returns latencies by load, up to the maximum: a list of (rate, p50, p99) by database."""
    curves = {}
    for database, server in ours.items():
        greatest = wrk(server.url, "heartbeat.lua", 64, table.seconds)
        curve = []
        for share in [0.1, 0.25, 0.5, 0.75]:
            # The pause of each connection results in this rate for all of them together.
            measured = wrk(server.url, "heartbeat.lua", 256, table.seconds, PAUSE=256 / (share * greatest.rate) * 1_000)
            curve.append((measured.rate, measured.p50, measured.p99))
            if share == 0.5:
                detail = f"{measured.rate:,.0f}/s of {greatest.rate:,.0f}/s, p50 {measured.p50:.1f} ms"
                table.add("p99 of heartbeats at half of the maximum load", database, measured.p99, 10, detail, " ms", most=True)
        curves[database] = [*curve, (greatest.rate, greatest.p50, greatest.p99)]
    return curves


def memory(table, servers, agents, wanted):
    for database, server in servers.items():
        now, most = server.resident()
        table.add(f"resident memory under load, {agents:,} agents", database, now, wanted, f"at most {most:.0f} MiB", " MiB", most=True)


def starts(table, servers, agents, wanted):
    for database, server in servers.items():
        took = []
        for _ in range(table.rounds):
            server.stop()
            took.append(server.start("/agents/agent-1"))
        detail = f"{min(took):.2f} to {max(took):.2f} s"
        table.add(f"start to first response, {agents:,} agents", database, median(took), wanted, detail, " s", most=True)


def by_agents(table, fresh):
    """Returns the rates of heartbeats and searches by the number of agents, each on new servers: lists of (agents, rate) by name."""
    curves = {}
    for agents in [1_000, 3_000, 10_000, 30_000, 100_000]:
        for database, server in fresh(agents).items():
            server.start()
            fill(server, agents)
            beats = wrk(server.url, "heartbeat.lua", 64, table.seconds, AGENTS=agents).rate
            searches = wrk(server.url + SEARCH, None, 64, table.seconds).rate
            curves.setdefault(f"heartbeats, {database}", []).append((agents, beats))
            curves.setdefault(f"searches with 100 matches, {database}", []).append((agents, searches))
            server.stop()
    return curves
