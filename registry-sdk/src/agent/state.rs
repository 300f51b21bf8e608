//! The visible states of an agent.

use std::sync::Arc;
use std::time::Instant;

use crate::contract::{AgentRecord, Owner, Timestamp};
use crate::error::Error;

/// The state of an agent. Follow it with [`Agent::watch`](super::Agent::watch).
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
        /// When the agent entered this state.
        since: Instant,
        /// When the registry last heard of the agent, by the registry's clock.
        last_heartbeat: Option<Timestamp>,
    },
    /// The registry does not respond or refuses the agent, or the process was suspended past its deadline. The agent keeps
    /// running, and keeps trying as long as heartbeats are on.
    Degraded {
        /// When the agent entered this state.
        since: Instant,
        /// Number of failed attempts since then.
        attempts: u32,
        /// The error of the last attempt.
        last_error: Arc<Error>,
    },
    /// Another process owns the agent's id, so no heartbeats are sent. [`Agent::on_superseded`](super::Agent::on_superseded)
    /// sets what happens next.
    Superseded {
        /// The process that owns the id. `None` if the registry did not name it, until the agent reads it from the record. Such a
        /// registry knows no ages: the newest registration owns the id, whichever process is younger, and the agent never takes it
        /// back.
        owner: Option<Owner>,
    },
    /// The agent was shut down and sends nothing any more.
    Stopped,
}

/// What an agent does if a younger process owns its id. Set with [`Agent::on_superseded`](super::Agent::on_superseded).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnSuperseded {
    /// Reads the record once per interval, and registers when the owner is offline or gone. If the new process of a rollout
    /// dies, the old one takes over. The default.
    #[default]
    StandBy,
    /// Sends nothing by itself any more.
    Stop,
}

impl AgentState {
    /// Returns whether the registry knows the agent, as far as the agent can tell.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Returns whether the registry does not respond, refuses the agent, or the process was suspended.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        matches!(self, Self::Degraded { .. })
    }

    /// Returns whether another process owns the agent's id.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded { .. })
    }

    /// Returns the name of the state in metrics.
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

/// The outcome of a registration with several attempts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistrationOutcome {
    /// The registry knows the agent.
    Registered(Box<AgentRecord>),
    /// The agent could not be registered now. It can run without its registry: once heartbeats are started, it keeps trying.
    Degraded(Arc<Error>),
    /// A younger process owns the agent's id. The agent can run anyway: once heartbeats are started, it registers when that
    /// process is gone.
    Superseded(Arc<Error>),
}
