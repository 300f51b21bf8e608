"""Calls a service that delegates a task to an agent. The caller and the agent use OpenTelemetry's SDK. Checks that this is one trace."""

import http.server
import json
import sys
import threading
import urllib.request
from importlib.metadata import version

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

PROPAGATOR = TraceContextTextMapPropagator()
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("trace_context")


class Agent(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        context = PROPAGATOR.extract({name.lower(): value for name, value in self.headers.items()})
        with TRACER.start_as_current_span("execute", context=context):
            pass
        body = b"{}"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def describe(span):
    context, parent = span.get_span_context(), span.parent
    return {
        "name": span.name,
        "trace_id": format_trace_id(context.trace_id),
        "id": format_span_id(context.span_id),
        "parent": format_span_id(parent.span_id if parent else 0),
    }


def call(service, agent):
    with TRACER.start_as_current_span("call"):
        headers = {"content-type": "text/plain"}
        PROPAGATOR.inject(headers)
        urllib.request.urlopen(urllib.request.Request(f"{service}/delegate", agent.encode(), headers)).close()


def main(service):
    agent = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
    threading.Thread(target=agent.serve_forever, daemon=True).start()
    call(service, f"http://127.0.0.1:{agent.server_port}")
    with urllib.request.urlopen(f"{service}/spans") as response:
        spans = json.load(response) + [describe(span) for span in EXPORTER.get_finished_spans()]
    by_id = {span["id"]: span for span in spans}
    [execute] = [span for span in spans if span["name"] == "execute"]
    chain = [execute]
    while parent := by_id.get(chain[0]["parent"]):
        chain.insert(0, parent)
    names, traces = [span["name"] for span in chain], {span["trace_id"] for span in chain}
    print(f"opentelemetry-sdk {version('opentelemetry-sdk')}, trace {', '.join(traces)}: {' > '.join(names)}")
    expected = ["call", "POST /delegate", "delegation", "delegation_attempt", "execute"]
    if (names, len(traces)) != (expected, 1):
        sys.exit(f"expected one trace: {' > '.join(expected)}")


main(sys.argv[1])
