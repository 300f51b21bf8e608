//! Traces over several processes, as the OpenTelemetry SDK's own exporter sees them.
#![cfg(all(feature = "axum", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(all(feature = "a2a", feature = "opentelemetry"))]
mod a2a;
#[cfg(feature = "opentelemetry")]
mod agents;
#[cfg(feature = "opentelemetry")]
mod delegations;
#[cfg(feature = "opentelemetry")]
mod registry_calls;
mod support;
#[cfg(not(feature = "opentelemetry"))]
mod without_the_feature;
