//! Traces from the caller to the agent's handler and to the registry, as an OpenTelemetry exporter receives them.
#![cfg(all(feature = "axum", feature = "opentelemetry", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "a2a")]
mod a2a;
mod agents;
mod delegations;
mod registry_calls;
mod support;
