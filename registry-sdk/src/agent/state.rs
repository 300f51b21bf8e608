//! What can be seen of an agent's life.

use std::sync::Arc;
use std::time::Instant;

use crate::contract::{AgentRecord, Owner, Timestamp};
use crate::error::Error;

/// The agent's standing with its registry. Watch it with [`Agent::watch`](super::Agent::watch).
///
/// ```text
///                        registered
///     Registering ─────────────────────► Registered ◄───┐
///       │     ▲                           │    │        │ heard, or
///       │     └─ unknown (404), contested ┘    │ fails, │ registered
///       │ fails  (409), or another             │ stalls │
///       │        registration (tag)            ▼        │
///       └───────────────────────────────► Degraded ─────┘
///
///     any of these ─── a younger process owns the id (409) ──► Superseded
///     Superseded ───── the owner is gone: registered ────────► Registered
///     any of these ─── shutdown ─────────────────────────────► Stopped
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AgentState {
    /// The agent has not registered yet, or is about to register again.
    Registering,
    /// The registry knows the agent.
    Registered {
        /// Since when it has been so, without a break.
        since: Instant,
        /// When the registry last heard of the agent, by the registry's clock.
        last_heartbeat: Option<Timestamp>,
    },
    /// The registry does not answer, or refuses; or the process itself stood still past its deadline. The agent runs on,
    /// and goes on trying as long as heartbeats are on.
    Degraded {
        /// Since when.
        since: Instant,
        /// Number of attempts that have failed since then.
        attempts: u32,
        /// Why the last one failed.
        last_error: Arc<Error>,
    },
    /// Another process owns the agent's id. No heartbeats are sent. What happens next is the choice of
    /// [`Agent::on_superseded`](super::Agent::on_superseded).
    Superseded {
        /// The process that owns the id. `None` if the registry does not say: it knows no ages, and the agent never takes
        /// the id back.
        owner: Option<Owner>,
    },
    /// The agent was shut down. Nothing is sent any more.
    Stopped,
}

/// What an agent does when a younger process owns its id. Set by [`Agent::on_superseded`](super::Agent::on_superseded).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnSuperseded {
    /// Reads the record once an interval, and registers when the owner is offline or gone. The default: a rollout whose new
    /// process dies leaves the old one in charge.
    #[default]
    StandBy,
    /// Sends nothing by itself any more.
    Stop,
}

impl AgentState {
    /// Whether the registry knows the agent, as far as the agent can tell.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Whether the registry has stopped answering, or refuses the agent, or the process stood still.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        matches!(self, Self::Degraded { .. })
    }

    /// Whether another process owns the agent's id.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded { .. })
    }

    /// Its name in metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Registering => "registering",
            Self::Registered { .. } => "registered",
            Self::Degraded { .. } => "degraded",
            Self::Superseded { .. } => "superseded",
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
    /// The agent could not be registered now. It can run without its registry: once heartbeats are started, it goes on
    /// trying.
    Degraded(Arc<Error>),
    /// A younger process owns the agent's id. The agent can run all the same: once heartbeats are started, it registers
    /// when that process is gone.
    Superseded(Arc<Error>),
}
