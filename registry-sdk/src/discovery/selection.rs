//! The result of a selection: the agent, the skipped agents, or why there is none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::agent_states::Call;
use super::failure_kind::FailureKind;
use super::freshness::Freshness;
use crate::contract::CapabilityMatch;
use crate::error::Error;

/// Maximum number of agents that an error names.
const NAMED: usize = 10;

/// The selected agent, and how it was selected.
///
/// A task counts as in flight at the agent until its outcome is reported, or the selection and its clones are dropped. A
/// delegation reports by itself. If you call the agent yourself, report the outcome with
/// [`report_success`](Self::report_success) or [`report_failure`](Self::report_failure), so that the orchestrator knows which
/// agents are loaded, busy or broken:
///
/// ```no_run
/// # async fn call(_: &registry_sdk::CapabilityMatch) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn example(orchestrator: registry_sdk::Orchestrator) -> Result<(), Box<dyn std::error::Error>> {
/// use registry_sdk::discovery::FailureKind;
///
/// let selection = orchestrator.find_best_agent("code_review").await?;
/// match call(&selection.agent).await {
///     Ok(()) => selection.report_success(),
///     Err(_) => selection.report_failure(FailureKind::Agent),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selection {
    /// The agent, with the capability that matched.
    pub agent: CapabilityMatch,
    /// The requested capability by which the agent was found.
    pub matched_capability: String,
    /// Whether that was a fallback.
    pub is_fallback: bool,
    /// The candidates that were skipped. Agents that the registry omitted as unhealthy are named only if no agent was selected.
    pub skipped: Vec<Skipped>,
    /// How fresh the data behind this selection is.
    pub freshness: Freshness,
    /// Whether no other agent could be given the task now.
    pub(super) is_last: bool,
    pub(super) call: Arc<Call>,
}

impl Selection {
    /// Reports that the agent did the task. Only the first report of a selection counts.
    pub fn report_success(&self) {
        self.call.succeeded();
    }

    /// Reports that the task failed.
    ///
    /// [`FailureKind::Agent`] counts against the agent, and [`FailureKind::Busy`] keeps it from getting tasks for a while. Only
    /// the first report of a selection counts.
    pub fn report_failure(&self, kind: FailureKind) {
        self.call.failed(kind, kind == FailureKind::Agent);
    }
}

/// A skipped agent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// The agent's id.
    pub agent_id: String,
    /// Why it was skipped.
    pub reason: SkipReason,
}

impl Skipped {
    pub(super) fn new(agent_id: &str, reason: SkipReason) -> Self {
        Self { agent_id: agent_id.to_owned(), reason }
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self.reason, SkipReason::Busy { .. })
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.agent_id, self.reason)
    }
}

/// Why an agent was skipped. In a text, the reason follows the agent's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SkipReason {
    /// The query excludes the agent.
    #[error("is excluded")]
    Excluded,
    /// The capability lacks one of the tags.
    #[error("lacks a tag")]
    MissingTag,
    /// The metadata lacks one of the values.
    #[error("has other metadata")]
    OtherMetadata,
    /// Only the description of the capability has words of the query.
    #[error("only mentions it in a description")]
    DescriptionOnly,
    /// The agent is offline.
    #[error("is offline")]
    Offline,
    /// The agent is in maintenance. Reported by a directory or a health check, because the registry omits such agents from its
    /// searches.
    #[error("is in maintenance")]
    Maintenance,
    /// The agent is not healthy.
    #[error("is not healthy")]
    Unhealthy,
    /// The health check failed, or took too long.
    #[error("could not be checked, since the health check failed or took too long")]
    NoAnswer,
    /// The agent failed too often recently.
    #[error("is ejected, since it failed too often")]
    Ejected,
    /// The agent asked to be avoided.
    #[error("is busy for another {retry_after:.1?}")]
    Busy {
        /// The remaining time.
        retry_after: Duration,
    },
}

/// Why no agent was selected.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No healthy agent has the capability.
    #[error(
        "no agent can be given {capability:?}: {}",
        list_or(skipped, "no healthy one is registered for it")
    )]
    NoAgent {
        /// The requested capability.
        capability: String,
        /// All agents that have the capability, or a fallback, and why each was skipped.
        skipped: Vec<Skipped>,
    },
    /// The registry could not be searched.
    #[error("the registry could not be searched")]
    Registry(#[from] Error),
}

impl SelectError {
    /// Returns the agents that were skipped.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        match self {
            Self::NoAgent { skipped, .. } => skipped,
            Self::Registry(_) => &[],
        }
    }

    /// Returns the time after which the first busy agent can be asked again, if there is one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let times = self.skipped().iter().filter_map(|one| match one.reason {
            SkipReason::Busy { retry_after } => Some(retry_after),
            _ => None,
        });
        times.min()
    }
}

/// Formats agents: "a is offline, b is busy for another 3.2s".
pub(super) fn list<T: fmt::Display>(agents: &[T]) -> String {
    let text = agents.iter().take(NAMED).map(T::to_string).collect::<Vec<_>>().join(", ");
    match agents.len().saturating_sub(NAMED) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

fn list_or<T: fmt::Display>(agents: &[T], none: &str) -> String {
    if agents.is_empty() { none.to_owned() } else { list(agents) }
}
