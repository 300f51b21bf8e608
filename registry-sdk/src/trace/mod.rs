//! Traces over several processes (feature `opentelemetry`).
//!
//! The SDK sends the context of the current span with each request, and an agent on axum continues the trace.
//!
//! The SDK's spans are those of [`tracing`](https://docs.rs/tracing). They become spans of OpenTelemetry through the
//! layer of `tracing-opentelemetry` 0.34, which activates contexts by default. A program that creates spans with
//! OpenTelemetry's own API needs no layer: its current context is sent as well.
//!
//! The global propagator determines the headers. By default there is none, so the program sets it once:
//!
//! ```
//! use opentelemetry::global;
//! use opentelemetry_sdk::propagation::TraceContextPropagator;
//!
//! // `traceparent` and `tracestate`, as in W3C Trace Context.
//! global::set_text_map_propagator(TraceContextPropagator::new());
//! ```
//!
//! The program has to use the same version of the crate `opentelemetry` as the SDK, 0.33: each version has a global propagator of
//! its own.
//!
//! # What is traced
//!
//! - A delegation is a span, and so is each of its attempts, with `attempt`, `agent_id`, `hedge` and `outcome`: `ok`, `cancelled`
//!   because another attempt was faster or the delegation was dropped, or a kind of failure. The agent gets the context of its attempt.
//! - An operation of the registry is a span, and so is each of its attempts. The registry writes the trace's id to its log.
//!
//! Operations are at level `info` within another span, and at `debug` elsewhere. At `info`, therefore, heartbeats, watches and
//! monitors, which run in tasks of the SDK, make no spans and send no context. At `debug` the heartbeats of an agent are one trace
//! that lasts as long as the agent: keep `registry_sdk` at `info` for what goes to a collector.

#[cfg(feature = "axum")]
mod continue_trace;
mod headers;

#[cfg(feature = "axum")]
pub use continue_trace::continue_trace;

pub use headers::headers;
