//! Scores of documents.

use super::postings::DocumentId;

/// A document that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub(super) id: DocumentId,
    pub(super) score: f64,
    /// Whether only the description has words of the query.
    pub(super) description_only: bool,
}

/// Rounds a score to four digits: what differs less is a tie.
pub(super) fn round(score: f64) -> f64 {
    (score * 10_000.0).round() / 10_000.0
}
