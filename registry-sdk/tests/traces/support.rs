//! One exporter for all tests, each of which has a trace of its own, and agents on axum.

use std::sync::LazyLock;

use axum::Router;
use opentelemetry::trace::{SpanId, TraceContextExt, TraceId, TracerProvider};
use opentelemetry::{Context, global};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::Orchestrator;
use registry_sdk::testing::MockRegistry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span, info_span};
use tracing_subscriber::layer::SubscriberExt;

/// The exporter of a program that traces at `info`.
static EXPORTER: LazyLock<InMemorySpanExporter> = LazyLock::new(|| {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO).with(layer);
    tracing::subscriber::set_global_default(subscriber).unwrap();
    exporter
});

/// The trace of a test.
pub(crate) struct Trace {
    root: Span,
    pub(crate) id: TraceId,
}

impl Trace {
    pub(crate) fn begin() -> Self {
        Self::begin_in(Context::new())
    }

    /// Begins the trace in a context that another program sent.
    pub(crate) fn begin_in(context: Context) -> Self {
        LazyLock::force(&EXPORTER);
        let _guard = context.attach();
        let root = info_span!("test");
        let id = root.in_scope(|| Context::current().span().span_context().trace_id());
        Self { root, id }
    }

    /// Runs a part of the test within the trace.
    pub(crate) async fn run<T>(&self, part: impl Future<Output = T>) -> T {
        part.instrument(self.root.clone()).await
    }

    /// Ends the root span. Returns those spans of the trace that have ended.
    pub(crate) fn end(self) -> Spans {
        drop(self.root);
        Spans::of(self.id)
    }
}

/// The spans of a trace, in the order in which they began.
#[derive(Debug)]
pub(crate) struct Spans(pub(crate) Vec<SpanData>);

impl Spans {
    pub(crate) fn of(trace: TraceId) -> Self {
        let mut spans = EXPORTER.get_finished_spans().unwrap();
        spans.retain(|span| span.span_context.trace_id() == trace);
        spans.sort_by_key(|span| span.start_time);
        Self(spans)
    }

    pub(crate) fn named(&self, name: &str) -> Vec<&SpanData> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    /// Returns the only span with this name.
    pub(crate) fn one(&self, name: &str) -> &SpanData {
        let named = self.named(name);
        assert_eq!(named.len(), 1, "{name}: {self:#?}");
        named[0]
    }

    /// Returns the span of the delegation's attempt with this number.
    pub(crate) fn attempt(&self, number: i64) -> &SpanData {
        let number = number.to_string();
        let attempts = self.named("delegation_attempt");
        let found = attempts.into_iter().find(|span| attribute(span, "attempt") == Some(number.clone()));
        found.unwrap_or_else(|| panic!("no attempt {number}: {self:#?}"))
    }
}

pub(crate) fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

pub(crate) fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
    found.map(|attribute| attribute.value.to_string())
}

/// Checks attributes of a span. An empty string means that the attribute is not set.
pub(crate) fn check(span: &SpanData, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let value = Some((*value).to_owned()).filter(|value| !value.is_empty());
        assert_eq!(attribute(span, key), value, "{key}: {span:#?}");
    }
}

/// A mock registry, and agents that can do `work`, the better ones first.
pub(crate) struct Agents {
    pub(crate) registry: MockRegistry,
    serving: JoinSet<()>,
    count: usize,
}

impl Agents {
    pub(crate) async fn new() -> Self {
        Self { registry: MockRegistry::start().await, serving: JoinSet::new(), count: 0 }
    }

    /// Starts and registers the next agent. Returns its URL.
    pub(crate) async fn start(&mut self, agent_id: &str, app: Router) -> String {
        let (url, serving) = serve(app).await;
        self.serving.spawn(serving);
        self.register(agent_id, &url).await;
        url
    }

    pub(crate) async fn register(&mut self, agent_id: &str, url: &str) {
        let capability = ["work", "work_in_part"][self.count];
        self.count += 1;
        let registration = Registration::new(agent_id, agent_id, url).capability(Capability::new(capability));
        self.registry.client().register(&registration).await.unwrap();
    }

    pub(crate) fn orchestrator(&self) -> Orchestrator {
        Orchestrator::new(self.registry.client())
    }
}

/// Returns the URL of a new server, and the future that runs it.
pub(crate) async fn serve(app: Router) -> (String, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, async move { axum::serve(listener, app).await.unwrap() })
}
