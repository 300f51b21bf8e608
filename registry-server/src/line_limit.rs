//! Limits the log lines that anyone can cause without a token.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::clock::MonotonicClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::admission::{ClientKey, RateLimiters};

/// Number of lines that an address may cause at once. Afterwards, one per second.
const ADDRESS_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// Number of lines from all addresses together: at once, and per second afterwards. At most some 300 MB a
/// day.
const BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);
const PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// Limits log lines per address and in total.
pub(crate) struct LineLimit {
    by_address: RateLimiters,
    all: RateLimiter<NotKeyed, InMemoryState, MonotonicClock>,
    left_out: AtomicU64,
}

impl std::fmt::Debug for LineLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LineLimit").field("left_out", &self.left_out).finish_non_exhaustive()
    }
}

impl Default for LineLimit {
    fn default() -> Self {
        let all = Quota::per_second(PER_SECOND).allow_burst(BURST);
        Self {
            by_address: RateLimiters::new(Quota::per_second(NonZeroU32::MIN).allow_burst(ADDRESS_BURST)),
            all: RateLimiter::direct_with_clock(all, MonotonicClock),
            left_out: AtomicU64::default(),
        }
    }
}

impl LineLimit {
    /// Counts a line. Returns the number of lines omitted before it, or `None` if the line must be omitted as
    /// well.
    pub(crate) fn admit(&self, address: Option<IpAddr>) -> Option<u64> {
        let is_within = |address| self.by_address.check_rate(&ClientKey::from_address(address)).is_ok();
        if address.is_none_or(is_within) && self.all.check().is_ok() {
            Some(self.left_out.swap(0, Ordering::Relaxed))
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use super::*;

    #[test]
    fn flood_from_many_addresses_is_limited_and_counted() {
        let (limit, began) = (LineLimit::default(), Instant::now());
        let admitted = (0..2_000).map(|number| limit.admit(Some(Ipv4Addr::from_bits(number).into())));
        let admitted: Vec<u64> = admitted.flatten().collect();
        let most = 101 + 10 * usize::try_from(began.elapsed().as_secs() + 1).unwrap();
        assert!((100..=most).contains(&admitted.len()), "{}", admitted.len());
        let left_out = admitted.iter().sum::<u64>() + limit.left_out.load(Ordering::Relaxed);
        assert_eq!(left_out + admitted.len() as u64, 2_000);
    }
}
