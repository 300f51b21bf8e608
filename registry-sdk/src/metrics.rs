//! The SDK's metrics (feature `metrics`). The crate's documentation lists them.

use crate::error::Error;

/// Counts a registration.
pub(crate) fn registration_sent<T>(outcome: &Result<T, Error>) {
    count(
        "agent_registry_sdk_registrations_total",
        match outcome {
            Ok(_) => "ok",
            Err(error) if error.is_refused() => "refused",
            Err(_) => "failed",
        },
    );
}

/// Counts a heartbeat.
pub(crate) fn heartbeat_sent<T>(outcome: &Result<T, Error>) {
    count(
        "agent_registry_sdk_heartbeats_total",
        match outcome {
            Ok(_) => "ok",
            Err(error) if error.is_not_found() => "unknown",
            Err(error) if error.is_superseded() => "superseded",
            Err(_) => "failed",
        },
    );
}

#[cfg(feature = "metrics")]
fn count(name: &'static str, outcome: &'static str) {
    metrics::counter!(name, "outcome" => outcome).increment(1);
}

#[cfg(not(feature = "metrics"))]
fn count(_: &'static str, _: &'static str) {}

/// Counts the end of a delegation.
pub(crate) fn task_ended(outcome: &'static str) {
    count("agent_registry_sdk_tasks_total", outcome);
}

/// Counts the end of a delegation's attempt.
pub(crate) fn attempt_ended(outcome: &'static str) {
    count("agent_registry_sdk_attempts_total", outcome);
}

/// Counts a failover to another agent.
pub(crate) fn failed_over() {
    increment("agent_registry_sdk_failovers_total");
}

/// Counts the ejection of an agent.
pub(crate) fn ejected() {
    increment("agent_registry_sdk_ejections_total");
}

/// Counts an attempt that was not made because the retry budget was exhausted.
pub(crate) fn retry_budget_exhausted() {
    increment("agent_registry_sdk_retry_budget_exhausted_total");
}

/// Counts a retry of a call.
pub(crate) fn retried() {
    increment("agent_registry_sdk_retries_total");
}

#[cfg(feature = "metrics")]
fn increment(name: &'static str) {
    metrics::counter!(name).increment(1);
}

#[cfg(not(feature = "metrics"))]
fn increment(_: &'static str) {}

/// Records the agent's state by name.
#[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "nobody records it"))]
pub(crate) fn state_changed(agent_id: &str, current: &str) {
    #[cfg(feature = "metrics")]
    for name in ["registering", "registered", "degraded", "superseded", "stopped"] {
        let gauge =
            metrics::gauge!("agent_registry_sdk_state", "agent_id" => agent_id.to_owned(), "state" => name);
        gauge.set(if name == current { 1.0 } else { 0.0 });
    }
}
