//! The order of matches. `match_all.rs` and `match_best.rs` compute their scores.

use std::cmp::Ordering;

use crate::contract::{AgentStatus, Timestamp};

/// The rank of a match in the contract's order; the lesser comes first.
///
/// Ordered by score, highest first; then `active` before `busy` before `offline`; then by last heartbeat, most recent first;
/// then by id.
#[derive(Clone, Copy, Debug)]
pub struct Rank<'a> {
    /// How well the capability matched.
    pub score: f64,
    /// The agent's status.
    pub status: AgentStatus,
    /// When the agent was last heard from.
    pub last_heartbeat: Option<Timestamp>,
    /// The agent's id.
    pub agent_id: &'a str,
}

impl Ord for Rank<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = other.score.total_cmp(&self.score);
        by_score
            .then_with(|| self.status.cmp(&other.status))
            .then_with(|| other.last_heartbeat.cmp(&self.last_heartbeat))
            .then_with(|| self.agent_id.cmp(other.agent_id))
    }
}

impl PartialOrd for Rank<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank<'_> {}
