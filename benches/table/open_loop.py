"""Open-loop load: requests at random times (a Poisson process), over many connections, independently of earlier responses."""

import random
import selectors
import socket
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SUCCESS = b"HTTP/1.1 200 "


@dataclass
class Measured:
    """Requests a second; CPU time of the measured processes for each request, in microseconds; and latencies in milliseconds, since the
    time at which a request was due, so that a late load generator does not hide latency."""

    rate: float
    cost: float
    p50: float
    p99: float


class OpenLoop:
    """Connections to a server."""

    def __init__(self, url, connections):
        self.host = urlsplit(url).netloc
        address = urlsplit(url).hostname, urlsplit(url).port
        self.sockets = [socket.create_connection(address) for _ in range(connections)]
        self.selector = selectors.DefaultSelector()
        for number, connection in enumerate(self.sockets):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A server closes a connection on which the first request is late.
            connection.send(f"GET /health HTTP/1.1\r\nhost: {self.host}\r\n\r\n".encode())
            connection.recv(65536)
            self.selector.register(connection, selectors.EVENT_READ, number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.selector.close()
        for connection in self.sockets:
            connection.close()

    def measure(self, method, path, rate, seconds, processes):
        """Sends requests. `{}` in the path is the number of the connection. Fails if a response is not a success."""
        before, began = processor_time(processes), time.perf_counter()
        free, due, latencies = deque(range(len(self.sockets))), {}, []
        with ThreadPoolExecutor(1) as executor:
            # In a separate thread, since a selector waits for whole milliseconds.
            sender = executor.submit(self.send, method, path, rate, began + seconds, free, due)
            while due or not sender.done():
                for key, _ in self.selector.select(0.1):
                    # A small response arrives in one piece.
                    answer = key.fileobj.recv(65536)
                    if not answer.startswith(SUCCESS):
                        raise SystemExit(f"{self.host}: {answer[:200]!r}")
                    latencies.append(time.perf_counter() - due.pop(key.data))
                    free.append(key.data)
            sender.result()
        took, cost = time.perf_counter() - began, processor_time(processes) - before
        latencies.sort()
        quantile = lambda share: latencies[int(share * len(latencies))] * 1e3
        return Measured(len(latencies) / took, cost / len(latencies) * 1e6, quantile(0.5), quantile(0.99))

    def send(self, method, path, rate, end, free, due):
        """Sends a request at each time, and records by connection when it was due."""
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-length: 0\r\n\r\n"
        at = time.perf_counter() + random.expovariate(rate)
        while at < end:
            time.sleep(max(0, at - time.perf_counter()))
            number = free.popleft()
            due[number] = at
            self.sockets[number].send(head.format(number).encode())
            at += random.expovariate(rate)


def processor_time(processes):
    """Returns the CPU time of processes and all their children, in seconds. A child that has ended counts in its parent."""
    parents, times = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # It has just ended.
        process = int(stat.parent.name)
        parents[process], times[process] = int(fields[1]), sum(map(int, fields[11:15])) / 100

    def is_measured(process):
        return process in processes or (process in parents and is_measured(parents[process]))

    return sum(took for process, took in times.items() if is_measured(process))
