//! Admission: what may be asked for at once, so that a flood costs those who flood and nobody else.
//!
//! Heartbeats keep a reserve. What costs much (searches, lists, counts) has a bounded number of places and threads of its
//! own (`bulkhead`), and what finds no place is refused at once rather than let wait; the bodies of requests have so many
//! bytes together. Neither takes from heartbeats, whose requests are small and whose lane is their own. Load shedding of
//! this kind: "Handling Overload", in Site Reliability Engineering (<https://sre.google/sre-book/handling-overload/>).

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use registry_sdk::contract::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How many costly requests may be worked on or be on their way to their clients.
const COSTLY: usize = 256;

/// How many bytes the longer bodies may have together.
const BODIES: usize = 64 * 1_024 * 1_024;

/// Bodies up to this length find room always: nearly all registrations, and every heartbeat.
const SMALL_BODY: usize = 4 * 1_024;

/// How often the memory of clients that have been quiet is given back.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Who may do how much.
#[derive(Debug)]
pub(crate) struct Admission {
    costly: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    rates: Option<Rates>,
}

/// A place, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// None is needed for what is small.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// The bearer of a token, by its name.
    Token(String),
    /// One address; for IPv6 its network of 64 bits, since one client has all of that.
    Address(IpAddr),
}

impl Admission {
    /// With a limit to each client's requests a second, or without.
    pub(crate) fn new(rate_limit: Option<NonZeroU32>) -> Self {
        Self {
            costly: Arc::new(Semaphore::new(COSTLY)),
            bodies: Arc::new(Semaphore::new(BODIES)),
            rates: rate_limit.map(Rates::new),
        }
    }

    /// A place for a costly request; `None` where all are taken.
    pub(crate) fn costly(&self) -> Option<Place> {
        let permit = self.costly.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: Some(permit) })
    }

    /// Room for a body that says its length, or may have any; `None` where there is none. A small one needs none.
    pub(crate) fn body(&self, length: Option<u64>) -> Option<Place> {
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(limits::BODY_BYTES);
        if length <= SMALL_BODY {
            return Some(Place::default());
        }
        let length = u32::try_from(length.min(limits::BODY_BYTES)).unwrap_or(u32::MAX);
        let permit = self.bodies.clone().try_acquire_many_owned(length).ok()?;
        Some(Place { _permit: Some(permit) })
    }

    pub(crate) fn limits_rates(&self) -> bool {
        self.rates.is_some()
    }

    /// Counts a request of a client. After how long it is worth another try, where there were too many.
    pub(crate) fn count(&self, client: &Client) -> Result<(), Duration> {
        self.rates.as_ref().map_or(Ok(()), |rates| rates.count(client))
    }
}

impl Client {
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        })
    }
}

/// The rate of each client, by the generic cell rate algorithm: so many a second, and a second's worth at once.
struct Rates {
    limiter: RateLimiter<Client, HashMapStateStore<Client>, MonotonicClock>,
    forgot: Mutex<Instant>,
}

impl std::fmt::Debug for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rates").field("clients", &self.limiter.len()).finish_non_exhaustive()
    }
}

impl Rates {
    fn new(a_second: NonZeroU32) -> Self {
        let limiter =
            RateLimiter::new(Quota::per_second(a_second), HashMapStateStore::default(), MonotonicClock);
        Self { limiter, forgot: Mutex::new(Instant::now()) }
    }

    fn count(&self, client: &Client) -> Result<(), Duration> {
        self.forget();
        self.limiter.check_key(client).map_err(|too_early| too_early.wait_time_from(MonotonicClock.now()))
    }

    fn forget(&self) {
        let mut forgot = self.forgot.lock();
        if forgot.elapsed() > FORGET_EVERY {
            *forgot = Instant::now();
            drop(forgot);
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn costly_requests_and_long_bodies_have_so_much_room_and_small_bodies_always_some() {
        let admission = Admission::new(None);
        let mut places: Vec<_> = (0..COSTLY).map(|_| admission.costly().unwrap()).collect();
        assert!(admission.costly().is_none());
        places.pop();
        assert!(admission.costly().is_some(), "one has left");

        // Of those that do not say their length, each counts as the longest.
        let bodies: Vec<_> =
            (0..BODIES / limits::BODY_BYTES).map(|_| admission.body(None).unwrap()).collect();
        assert!(admission.body(Some(5_000)).is_none());
        assert!(admission.body(Some(4_096)).is_some() && admission.body(Some(0)).is_some());
        drop(bodies);
        assert!(admission.body(Some(5_000)).is_some());
    }

    #[test]
    fn each_client_has_a_rate_of_its_own() {
        let admission = Admission::new(NonZeroU32::new(2));
        let client = |text: &str| Client::at(text.parse().unwrap());
        let (first, neighbour, other) = (client("2001:db8::1"), client("2001:db8::2"), client("192.0.2.1"));
        assert!(admission.count(&first).is_ok() && admission.count(&neighbour).is_ok());
        let wait = admission.count(&first).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        assert!(admission.count(&other).is_ok());
        assert!(admission.count(&Client::Token("a".to_owned())).is_ok());
    }
}
