//! What the SDK counts, for whoever records it (feature `metrics`).
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `agent_registry_sdk_registrations_total` | counter | `outcome`: `ok`, `failed`, `refused` |
//! | `agent_registry_sdk_heartbeats_total` | counter | `outcome`: `ok`, `failed`, `unknown`, `superseded` |
//! | `agent_registry_sdk_retries_total` | counter | |
//! | `agent_registry_sdk_state` | gauge | `state`; 1 for the state an agent is in, else 0 |
//!
//! The gauge has the agent's id as `agent_id`, too: a process runs few agents.

use crate::error::Error;

/// A registration was sent.
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

/// A heartbeat was sent.
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

/// A call is about to be repeated.
pub(crate) fn retried() {
    #[cfg(feature = "metrics")]
    metrics::counter!("agent_registry_sdk_retries_total").increment(1);
}

/// The agent's state has changed to the one of this name.
#[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "nobody records it"))]
pub(crate) fn state_changed(agent_id: &str, current: &str) {
    #[cfg(feature = "metrics")]
    for name in ["registering", "registered", "degraded", "superseded", "stopped"] {
        let gauge =
            metrics::gauge!("agent_registry_sdk_state", "agent_id" => agent_id.to_owned(), "state" => name);
        gauge.set(if name == current { 1.0 } else { 0.0 });
    }
}
