//! Freshness of discovered data.

use std::time::Duration;

/// How fresh discovered data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// The registry's present response, or one that is younger than the cache's time to live.
    Fresh,
    /// Data from earlier: the registry does not respond, or answers from memory because its database is unavailable.
    Stale {
        /// Age of that data.
        age: Duration,
    },
}

impl Freshness {
    /// Returns the freshness of data with an age; current data has none.
    pub(crate) fn of(age: Duration) -> Self {
        if age.is_zero() { Self::Fresh } else { Self::Stale { age } }
    }

    /// Returns whether this is data from earlier: see [`Stale`](Self::Stale).
    #[must_use]
    pub fn is_stale(self) -> bool {
        matches!(self, Self::Stale { .. })
    }
}
