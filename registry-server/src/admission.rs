//! Admission control: bounds concurrent work, so that a flood only slows down the clients that cause it.
//!
//! A few searches, lists and counts run at a time. A fixed number may wait for their turn; a further one is rejected at once.
//! Those that take long run on threads beside the ones that answer heartbeats, as many as there are cores, so that they compete
//! with heartbeats for CPU time only, which the operating system divides fairly. Quick ones run where they arrive, on all
//! threads but one, since changing threads would double their cost (measured in `benches/README.md`). Very many of them may
//! wait: a waiting request costs no CPU time, and a rejected client tries again. The bodies that are being read
//! share a byte budget. Heartbeats need neither: their bodies are small, and their write queue is their own. This is
//! load shedding as in "Handling Overload", Site Reliability Engineering
//! (<https://sre.google/sre-book/handling-overload/>).

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use registry_sdk::contract::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::metrics::Usage;
use crate::registry::Error;

/// Maximum number of longer searches, lists and counts that run or wait.
const MAX_LONG_READS: usize = 256;

/// Maximum number of quick ones: the last of them waits some 0.3 s. With 256 places a flood over a thousand connections was
/// rejected 50,000 times a second, and heartbeats waited for that (measured in `benches/README.md`).
const MAX_QUICK_READS: usize = 4_096;

/// Maximum total size of the longer bodies in flight.
const MAX_BODY_BYTES_IN_FLIGHT: usize = 64 * 1_024 * 1_024;

/// Maximum size of a body that needs no permit: nearly all registrations, and every heartbeat.
const SMALL_BODY_BYTES: usize = 4 * 1_024;

/// Number of wrong tokens that an address may send at once; afterwards one a second. Some agents of one host whose token has
/// expired are all told so.
const WRONG_TOKENS_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// Interval at which the state of idle clients is freed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Permits for expensive work, and the clients' rate limits.
#[derive(Debug)]
pub(crate) struct Admission {
    long_reads: Reads,
    quick_reads: Reads,
    body_bytes: Arc<Semaphore>,
    connections: Places,
    event_streams: Places,
    rate_limiters: Option<RateLimiters>,
    /// For wrong tokens, by address.
    wrong_tokens: RateLimiters,
}

/// Permits for reads of one kind.
#[derive(Debug)]
struct Reads {
    /// For those that run or wait.
    places: Semaphore,
    running: Arc<Semaphore>,
}

/// Places for connections or event streams, one each.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    max: usize,
}

/// Permission for a request, returned when dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    /// `None` for small bodies, which need none.
    _permit: Option<OwnedSemaphorePermit>,
}

/// The key under which requests are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// The name of the token that authenticated the request.
    Token(String),
    /// The client's address; for IPv6 its /64 network, since one client has all of that.
    Address(IpAddr),
}

impl Admission {
    /// Creates the limits; `rate_limit` is in requests per second and client.
    pub(crate) fn new(max_connections: NonZeroUsize, rate_limit: Option<NonZeroU32>) -> Self {
        let cores = available_parallelism().map_or(1, Into::into);
        Self {
            long_reads: Reads::new(MAX_LONG_READS, cores),
            // One thread for requests is always left.
            quick_reads: Reads::new(MAX_QUICK_READS, (cores - 1).max(1)),
            body_bytes: Arc::new(Semaphore::new(MAX_BODY_BYTES_IN_FLIGHT)),
            connections: Places::new(max_connections.get()),
            event_streams: Places::new(share_of(max_connections.get())),
            rate_limiters: rate_limit.map(|per_second| RateLimiters::new(Quota::per_second(per_second))),
            wrong_tokens: RateLimiters::new(
                Quota::per_second(NonZeroU32::MIN).allow_burst(WRONG_TOKENS_BURST),
            ),
        }
    }

    /// Runs a read that takes no longer than a millisecond, unless too many wait already.
    pub(crate) async fn read_quick<T>(&self, read: impl FnOnce() -> T) -> Result<T, Error> {
        let _place = self.quick_reads.places.try_acquire().map_err(|_| Error::Overloaded)?;
        let _running = self.quick_reads.running.acquire().await.map_err(|_| Error::ShuttingDown)?;
        Ok(read())
    }

    /// Runs a read that may take longer, unless too many wait already.
    ///
    /// A read whose caller gives up while it waits does not run.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _place = self.long_reads.places.try_acquire().map_err(|_| Error::Overloaded)?;
        self.read_further(read).await
    }

    /// Goes on with a read that was admitted before.
    pub(crate) async fn read_further<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let running =
            self.long_reads.running.clone().acquire_owned().await.map_err(|_| Error::ShuttingDown)?;
        let read = move || {
            // Kept until the end, also if the caller gives up.
            let _running = running;
            read()
        };
        // The panic hook has logged the cause.
        spawn_blocking(read).await.map_err(|_| Error::Internal)
    }

    /// Returns a permit for a body, or `None` if the budget is used up.
    ///
    /// A body of unknown length counts as the longest one.
    pub(crate) fn acquire_body(&self, length: Option<u64>) -> Option<Permit> {
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(limits::BODY_BYTES);
        if length <= SMALL_BODY_BYTES {
            return Some(Permit::default());
        }
        let length = u32::try_from(length.min(limits::BODY_BYTES)).unwrap_or(u32::MAX);
        let permit = self.body_bytes.clone().try_acquire_many_owned(length).ok()?;
        Some(Permit { _permit: Some(permit) })
    }

    /// Returns the places for connections.
    pub(crate) fn connections(&self) -> &Places {
        &self.connections
    }

    /// Returns the places for event streams.
    pub(crate) fn event_streams(&self) -> &Places {
        &self.event_streams
    }

    /// Counts a request with a wrong token; an error says how long to wait before the next attempt.
    pub(crate) fn count_wrong_token(&self, address: IpAddr) -> Result<(), Duration> {
        self.wrong_tokens.check_rate(&ClientKey::from_address(address))
    }

    pub(crate) fn has_rate_limit(&self) -> bool {
        self.rate_limiters.is_some()
    }

    /// Counts a request of a client; an error says how long to wait before the next attempt.
    pub(crate) fn check_rate(&self, client: &ClientKey) -> Result<(), Duration> {
        self.rate_limiters.as_ref().map_or(Ok(()), |rate_limiters| rate_limiters.check_rate(client))
    }
}

/// Returns the share of the connections that event streams may keep, and that may be in a TLS handshake: the rest is for
/// requests.
pub(crate) fn share_of(max_connections: usize) -> usize {
    (max_connections / 2).max(1)
}

impl Places {
    fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    /// Takes a place until the permit is dropped; `None` if all are taken.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// Returns how many places are taken, and how many there are.
    pub(crate) fn usage(&self) -> Usage {
        Usage { used: self.max.saturating_sub(self.free.available_permits()), max: self.max }
    }
}

impl Reads {
    fn new(places: usize, running: usize) -> Self {
        Self { places: Semaphore::new(places), running: Arc::new(Semaphore::new(running)) }
    }
}

impl ClientKey {
    pub(crate) fn from_address(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        })
    }
}

/// A rate limiter per client, by the generic cell rate algorithm.
pub(crate) struct RateLimiters {
    limiter: RateLimiter<ClientKey, HashMapStateStore<ClientKey>, MonotonicClock>,
    last_cleanup: Mutex<Instant>,
}

impl std::fmt::Debug for RateLimiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiters").field("clients", &self.limiter.len()).finish_non_exhaustive()
    }
}

impl RateLimiters {
    pub(crate) fn new(quota: Quota) -> Self {
        let limiter = RateLimiter::new(quota, HashMapStateStore::default(), MonotonicClock);
        Self { limiter, last_cleanup: Mutex::new(Instant::now()) }
    }

    pub(crate) fn check_rate(&self, client: &ClientKey) -> Result<(), Duration> {
        self.cleanup();
        self.limiter.check_key(client).map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }

    fn cleanup(&self) {
        let mut last_cleanup = self.last_cleanup.lock();
        if last_cleanup.elapsed() > CLEANUP_INTERVAL {
            *last_cleanup = Instant::now();
            drop(last_cleanup);
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_reads_are_bounded_and_quick_ones_have_places_of_their_own() {
        let admission = Arc::new(Admission::new(NonZeroUsize::MIN, None));
        assert!(matches!(admission.read(|| panic!("a defect")).await, Err::<(), _>(Error::Internal)));
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let reads: Vec<_> = (0..MAX_LONG_READS)
            .map(|_| {
                let (admission, ended) = (admission.clone(), ended.clone());
                tokio::spawn(async move { admission.read(move || ended.lock().recv().is_err()).await })
            })
            .collect();
        while admission.long_reads.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(admission.read(|| ()).await, Err(Error::Overloaded)));
        admission.read_quick(|| ()).await.unwrap();
        drop(end);
        for read in reads {
            assert!(read.await.unwrap().unwrap());
        }
        admission.read(|| ()).await.unwrap();
    }

    #[tokio::test]
    async fn thousands_of_quick_reads_wait_and_further_ones_are_rejected() {
        let admission = Arc::new(Admission::new(NonZeroUsize::MIN, None));
        let permits = u32::try_from(admission.quick_reads.running.available_permits()).unwrap();
        let running = admission.quick_reads.running.acquire_many(permits).await;
        let read = |admission: Arc<Admission>| async move { admission.read_quick(|| ()).await };
        let reads: Vec<_> = (0..MAX_QUICK_READS).map(|_| tokio::spawn(read(admission.clone()))).collect();
        while admission.quick_reads.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(admission.read_quick(|| ()).await, Err(Error::Overloaded)));
        admission.read(|| ()).await.unwrap();
        drop(running);
        for read in reads {
            read.await.unwrap().unwrap();
        }
    }

    #[test]
    fn long_bodies_are_bounded_and_small_bodies_are_not() {
        let admission = Admission::new(NonZeroUsize::MIN, None);
        // Bodies of unknown length count as the longest one.
        let permits: Vec<_> = (0..MAX_BODY_BYTES_IN_FLIGHT / limits::BODY_BYTES)
            .map(|_| admission.acquire_body(None).unwrap())
            .collect();
        assert!(admission.acquire_body(Some(5_000)).is_none());
        assert!(admission.acquire_body(Some(4_096)).is_some() && admission.acquire_body(Some(0)).is_some());
        drop(permits);
        assert!(admission.acquire_body(Some(5_000)).is_some());
    }

    #[test]
    fn rate_limits_are_per_client() {
        let admission = Admission::new(NonZeroUsize::MIN, NonZeroU32::new(2));
        let client = |text: &str| ClientKey::from_address(text.parse().unwrap());
        let (first, neighbour, other) = (client("2001:db8::1"), client("2001:db8::2"), client("192.0.2.1"));
        assert!(admission.check_rate(&first).is_ok() && admission.check_rate(&neighbour).is_ok());
        let wait = admission.check_rate(&first).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        assert!(admission.check_rate(&other).is_ok());
        assert!(admission.check_rate(&ClientKey::Token("a".to_owned())).is_ok());
    }
}
