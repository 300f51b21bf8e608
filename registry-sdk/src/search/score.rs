//! Matches and their scores.

use super::postings::DocumentId;

/// An agent that was found, with its best capability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The agent's slot, as returned by [`SearchIndex::insert`](super::SearchIndex::insert).
    pub slot: u32,
    /// The index of the capability among those of the agent.
    pub position: u16,
    /// How well the capability matches, up to 1: see [`Query::all`](super::Query::all) and [`Query::best`](super::Query::best).
    pub score: f64,
}

/// A document that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub(super) id: DocumentId,
    pub(super) score: f64,
    /// Whether only the description has words of the query.
    pub(super) description_only: bool,
}

/// Rounds a score to four digits. Smaller differences count as a tie.
///
/// Uses a cast, because `f64::round` is a library call on the oldest processors, and many documents are scored.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a score is between 0 and 1")]
pub(super) fn round(score: f64) -> f64 {
    f64::from((score * 10_000.0 + 0.5) as u32) / 10_000.0
}
