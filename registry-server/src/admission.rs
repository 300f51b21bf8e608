//! Admission control: bounds concurrent work, so that a flood only slows down the clients that cause it.
//!
//! Only a few searches, lists and counts run at a time. A fixed number may wait, and further ones are
//! rejected at once. Long reads run on as many extra threads as there are cores, so they only compete with
//! heartbeats for CPU time, which the operating system divides fairly. Quick reads run on the request threads
//! themselves, since switching threads would double their cost (measured in `benches/README.md`), but leave
//! one of several threads free. Many quick reads may wait: a waiting request costs no CPU time, while a
//! rejected client retries. Request bodies being read share a byte budget.
//!
//! Heartbeats need no limits here: their bodies are small, and they have their own write queue. This is load
//! shedding as in "Handling Overload", Site Reliability Engineering
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

/// Maximum number of long searches, lists and counts that run or wait.
const MAX_LONG_READS: usize = 256;

/// Maximum number of quick reads that run or wait. The last of them waits about 0.3 s.
///
/// With a limit of 256, a flood over a thousand connections caused 50,000 rejections a second, which delayed
/// heartbeats (measured in `benches/README.md`).
const MAX_QUICK_READS: usize = 4_096;

/// Maximum total size of the bodies in flight that need a permit.
const MAX_BODY_BYTES_IN_FLIGHT: usize = 64 * 1_024 * 1_024;

/// Maximum size of a body that needs no permit, as nearly all registrations and every heartbeat.
const SMALL_BODY_BYTES: usize = 4 * 1_024;

/// Number of wrong tokens that an address may send at once. Afterwards, one per second.
///
/// Large enough that several agents on one host whose token has expired all get a 401.
const WRONG_TOKENS_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// Interval at which the state of idle clients is freed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Permits for expensive work, and the rate limits of clients.
#[derive(Debug)]
pub(crate) struct Admission {
    long_reads: Reads,
    quick_reads: Reads,
    body_bytes: Arc<Semaphore>,
    connections: Slots,
    event_streams: Slots,
    rate_limiters: Option<RateLimiters>,
    /// Limits wrong tokens by address.
    wrong_tokens: RateLimiters,
}

/// Permits for reads of one kind.
#[derive(Debug)]
struct Reads {
    /// Permits to run or wait.
    slots: Semaphore,
    running: Arc<Semaphore>,
}

/// Slots for connections or event streams.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    max: usize,
}

/// Permission for a request. Returned when dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    /// `None` for small bodies, which need no permit.
    _permit: Option<OwnedSemaphorePermit>,
}

/// The client that a request counts for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// The name of the token that authenticated the request.
    Token(String),
    /// The client's address, or its /64 network for IPv6, all of which one client can use.
    Address(IpAddr),
}

impl Admission {
    /// Creates the limits. `rate_limit` is in requests per second and client.
    pub(crate) fn new(max_connections: NonZeroUsize, rate_limit: Option<NonZeroU32>) -> Self {
        let cores = available_parallelism().map_or(1, Into::into);
        Self {
            long_reads: Reads::new(MAX_LONG_READS, cores),
            // Keep one thread free for other requests.
            quick_reads: Reads::new(MAX_QUICK_READS, (cores - 1).max(1)),
            body_bytes: Arc::new(Semaphore::new(MAX_BODY_BYTES_IN_FLIGHT)),
            connections: Slots::new(max_connections.get()),
            event_streams: Slots::new(share_of(max_connections.get())),
            rate_limiters: rate_limit.map(|per_second| RateLimiters::new(Quota::per_second(per_second))),
            wrong_tokens: RateLimiters::new(
                Quota::per_second(NonZeroU32::MIN).allow_burst(WRONG_TOKENS_BURST),
            ),
        }
    }

    /// Runs a read that takes up to a millisecond, unless too many are waiting.
    pub(crate) async fn read_quick<T>(&self, read: impl FnOnce() -> T) -> Result<T, Error> {
        let _slot = self.quick_reads.slots.try_acquire().map_err(|_| Error::Overloaded)?;
        let _running = self.quick_reads.running.acquire().await.map_err(|_| Error::ShuttingDown)?;
        Ok(read())
    }

    /// Runs a read that may take longer, unless too many are waiting.
    ///
    /// If the caller gives up while the read waits, it does not run.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _slot = self.long_reads.slots.try_acquire().map_err(|_| Error::Overloaded)?;
        self.read_further(read).await
    }

    /// Continues a read that was admitted before.
    pub(crate) async fn read_further<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let running =
            self.long_reads.running.clone().acquire_owned().await.map_err(|_| Error::ShuttingDown)?;
        let read = move || {
            // Held until the read ends, even if the caller gives up.
            let _running = running;
            read()
        };
        // The panic hook has already logged the cause.
        spawn_blocking(read).await.map_err(|_| Error::Internal)
    }

    /// Returns a permit for a body, or `None` if the budget is used up.
    ///
    /// A body of unknown length counts with the maximum length.
    pub(crate) fn acquire_body(&self, length: Option<u64>) -> Option<Permit> {
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(limits::BODY_BYTES);
        if length <= SMALL_BODY_BYTES {
            return Some(Permit::default());
        }
        let length = u32::try_from(length.min(limits::BODY_BYTES)).unwrap_or(u32::MAX);
        let permit = self.body_bytes.clone().try_acquire_many_owned(length).ok()?;
        Some(Permit { _permit: Some(permit) })
    }

    /// Returns the slots for connections.
    pub(crate) fn connections(&self) -> &Slots {
        &self.connections
    }

    /// Returns the slots for event streams.
    pub(crate) fn event_streams(&self) -> &Slots {
        &self.event_streams
    }

    /// Counts a request with a wrong token. The error is the time to wait before the next attempt.
    pub(crate) fn count_wrong_token(&self, address: IpAddr) -> Result<(), Duration> {
        self.wrong_tokens.check_rate(&ClientKey::from_address(address))
    }

    pub(crate) fn has_rate_limit(&self) -> bool {
        self.rate_limiters.is_some()
    }

    /// Counts a request of a client. The error is the time to wait before the next attempt.
    pub(crate) fn check_rate(&self, client: &ClientKey) -> Result<(), Duration> {
        self.rate_limiters.as_ref().map_or(Ok(()), |rate_limiters| rate_limiters.check_rate(client))
    }
}

/// Returns the share of connections that may be event streams, or in a TLS handshake.
///
/// The remaining connections are left for requests.
pub(crate) fn share_of(max_connections: usize) -> usize {
    (max_connections / 2).max(1)
}

impl Slots {
    fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    /// Takes a slot until the permit is dropped. `None` if all slots are taken.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// Returns the number of taken slots, and the limit.
    pub(crate) fn usage(&self) -> Usage {
        Usage { used: self.max.saturating_sub(self.free.available_permits()), max: self.max }
    }
}

impl Reads {
    fn new(slots: usize, running: usize) -> Self {
        Self { slots: Semaphore::new(slots), running: Arc::new(Semaphore::new(running)) }
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

/// A rate limiter per client, using the generic cell rate algorithm.
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
    async fn long_reads_are_bounded_and_do_not_block_quick_reads() {
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
        while admission.long_reads.slots.available_permits() > 0 {
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
    async fn thousands_of_quick_reads_wait_and_further_reads_are_rejected() {
        let admission = Arc::new(Admission::new(NonZeroUsize::MIN, None));
        let permits = u32::try_from(admission.quick_reads.running.available_permits()).unwrap();
        let running = admission.quick_reads.running.acquire_many(permits).await;
        let read = |admission: Arc<Admission>| async move { admission.read_quick(|| ()).await };
        let reads: Vec<_> = (0..MAX_QUICK_READS).map(|_| tokio::spawn(read(admission.clone()))).collect();
        while admission.quick_reads.slots.available_permits() > 0 {
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
        // Bodies of unknown length count with the maximum length.
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
