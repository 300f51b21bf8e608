//! How much an answer can be relied on.

use std::time::Duration;

/// How much an answer can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is the registry's, or was within the time that answers count as fresh.
    Fresh,
    /// The registry does not answer, and this is what it said last.
    Stale {
        /// How long ago it said so.
        age: Duration,
    },
}

impl Freshness {
    /// Whether the registry does not answer.
    #[must_use]
    pub fn is_stale(self) -> bool {
        matches!(self, Self::Stale { .. })
    }
}
