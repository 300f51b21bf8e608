//! Freshness of discovered data.

use std::time::Duration;

/// How fresh discovered data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// The registry's present answer, or one that is younger than the cache's time to live.
    Fresh,
    /// The registry does not answer; this is its last answer.
    Stale {
        /// Age of that answer.
        age: Duration,
    },
}

impl Freshness {
    /// Of data of an age; current data has none.
    pub(crate) fn of(age: Duration) -> Self {
        if age.is_zero() { Self::Fresh } else { Self::Stale { age } }
    }

    /// Whether this is an earlier answer, because the registry does not answer now.
    #[must_use]
    pub fn is_stale(self) -> bool {
        matches!(self, Self::Stale { .. })
    }
}
