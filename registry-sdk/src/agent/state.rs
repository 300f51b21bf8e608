//! What can be seen of an agent's life.

use std::sync::Arc;
use std::time::Instant;

use crate::contract::{AgentRecord, Timestamp};
use crate::error::Error;

/// Where an agent stands with its registry. Watch it with [`Agent::watch`](super::Agent::watch).
///
/// ```text
///                     registered
///     Registering ──────────────────► Registered ◄───┐
///       │     ▲                        │    │        │ heard, or
///       │     └── unknown to the ──────┘    │ fails  │ registered
///       │  fails  registry (404)            ▼        │
///       └──────────────────────────────► Degraded ───┘
///
///     any of these ── another process registers (409) ──► Superseded
///     any of these ── shutdown ─────────────────────────► Stopped
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AgentState {
    /// It has not registered yet, or is about to register again.
    Registering,
    /// The registry knows it.
    Registered {
        /// Since when it has been so, without a break.
        since: Instant,
        /// When the registry last heard of it, by the registry's clock.
        last_heartbeat: Option<Timestamp>,
    },
    /// The registry does not answer, or refuses. The agent runs on, and the heartbeat loop goes on trying.
    Degraded {
        /// Since when.
        since: Instant,
        /// How many attempts have failed since then.
        attempts: u32,
        /// Why the last one failed.
        last_error: Arc<Error>,
    },
    /// Another process has registered with the agent's id since, and this one's heartbeats are refused: the
    /// newest registration wins. The loop has ended; [`Agent::register`](super::Agent::register) and
    /// [`Agent::start_heartbeat`](super::Agent::start_heartbeat) would take the id back.
    Superseded,
    /// It was shut down. Nothing is sent any more.
    Stopped,
}

impl AgentState {
    /// Whether the registry knows the agent, as far as the agent can tell.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Whether the registry has stopped answering, or refuses the agent.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        matches!(self, Self::Degraded { .. })
    }

    /// Whether another process has taken over the agent's id.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded)
    }

    /// All names, for a gauge of each.
    #[cfg(feature = "metrics")]
    pub(crate) const NAMES: [&str; 5] = ["registering", "registered", "degraded", "superseded", "stopped"];

    /// Its name, for metrics.
    #[cfg(feature = "metrics")]
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Registering => "registering",
            Self::Registered { .. } => "registered",
            Self::Degraded { .. } => "degraded",
            Self::Superseded => "superseded",
            Self::Stopped => "stopped",
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }
}

/// What became of a registration that was tried several times.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistrationOutcome {
    /// The registry knows the agent.
    Registered(Box<AgentRecord>),
    /// It could not be registered now. The agent can run without its registry: once the heartbeat loop is
    /// started, it goes on trying.
    Degraded(Arc<Error>),
}
