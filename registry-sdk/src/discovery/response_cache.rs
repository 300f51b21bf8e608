//! A cache of responses to one kind of query.

use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::freshness::Freshness;
use crate::client::Aged;
use crate::error::Error;
use crate::retry::{Backoff, deadline_after};

/// How long a caller waits for a refresh if there is an earlier response, because a registry that hangs must not slow down
/// reads.
const MAX_REFRESH_WAIT: Duration = Duration::from_millis(100);

/// Time to live of a response that the registry gave from memory.
const MAX_STALE_TTL: Duration = Duration::from_secs(2);

/// The delays between failed refreshes, unless the time to live is longer.
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(30);

/// A response, and how fresh it is. Dereferences to the response.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cached<T> {
    /// The response, shared with the cache.
    pub value: Arc<T>,
    /// How fresh the response is.
    pub freshness: Freshness,
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), freshness: self.freshness }
    }
}

impl<T> Deref for Cached<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// How long responses are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// Without a request.
    pub(super) ttl: Duration,
    /// If a refresh fails.
    pub(super) stale_if_error: Duration,
}

/// A cache of responses to one kind of query. Clones share them.
#[derive(Debug)]
pub(super) struct ResponseCache<K, T> {
    entries: Arc<Cache<K, Arc<Entry<T>>>>,
    lifetimes: Lifetimes,
}

impl<K, T> Clone for ResponseCache<K, T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), lifetimes: self.lifetimes }
    }
}

/// The entry of a query.
#[derive(Debug)]
struct Entry<T> {
    state: Mutex<State<T>>,
    /// Number of refreshes that have ended.
    refreshes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State<T> {
    last_good: Option<Good<T>>,
    /// The error of the last refresh. `None` if it succeeded.
    error: Option<Error>,
    /// Number of failed refreshes in a row.
    failures: u32,
    /// When the next refresh is due.
    due: Instant,
    /// When the refresh in progress began.
    refreshing_since: Option<Instant>,
}

/// A response of the registry.
#[derive(Debug)]
struct Good<T> {
    value: Arc<T>,
    arrived: Instant,
    /// The age of the response when it arrived.
    age: Duration,
}

impl<K, T> ResponseCache<K, T>
where
    K: Hash + Eq + Clone,
    T: Send + Sync + 'static,
{
    pub(super) fn new(capacity: usize, lifetimes: Lifetimes) -> Self {
        Self { entries: Arc::new(Cache::new(capacity)), lifetimes }
    }

    /// Returns the response to a query: from the cache while it is fresh, otherwise from `fetch`, which runs once for all
    /// concurrent callers, in a task of its own. If it fails or takes long, returns the last good response, up to its maximum
    /// age.
    ///
    /// Cancel safe: the refresh continues.
    pub(super) async fn get<F>(&self, key: &K, fetch: impl FnOnce() -> F) -> Result<Cached<T>, Error>
    where
        F: Future<Output = Result<Aged<T>, Error>> + Send + 'static,
    {
        let (entry, began) = (self.entry(key), Instant::now());
        let mut refreshes = entry.refreshes.subscribe();
        let limit = {
            let mut state = entry.state();
            let good = state.good(self.lifetimes, began);
            if began < state.due {
                match (&good, &state.error) {
                    (Some(good), _) => return Ok(good.clone()),
                    (None, Some(error)) if error.retry_after().is_some() => return Err(error.clone()),
                    _ => {}
                }
            }
            let since = *state.refreshing_since.get_or_insert_with(|| {
                let refresh = Refresh { entry: entry.clone(), ttl: self.lifetimes.ttl };
                // The refresh belongs to the trace of the caller that begins it.
                tokio::spawn(refresh.run(fetch()).in_current_span());
                began
            });
            // Later callers have waited as long as the first.
            let waited = began.saturating_duration_since(since);
            if good.is_some() { MAX_REFRESH_WAIT.saturating_sub(waited) } else { Duration::MAX }
        };
        // The entry holds the sender, so only the limit can end the waiting early.
        let _ = timeout(limit, refreshes.changed()).await;
        entry.state().result(self.lifetimes, began)
    }

    fn entry(&self, key: &K) -> Arc<Entry<T>> {
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(Entry::default()));
        let Ok(entry) = self.entries.get_or_insert_with(key, new);
        entry
    }
}

/// A refresh in progress. However it ends, the callers that wait continue.
struct Refresh<T> {
    entry: Arc<Entry<T>>,
    ttl: Duration,
}

impl<T> Refresh<T> {
    async fn run(self, fetch: impl Future<Output = Result<Aged<T>, Error>>) {
        let outcome = fetch.await;
        self.entry.state().update(outcome, self.ttl);
    }
}

impl<T> Drop for Refresh<T> {
    fn drop(&mut self) {
        self.entry.state().refreshing_since = None;
        self.entry.refreshes.send_modify(|ended| *ended += 1);
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        let state =
            State { last_good: None, error: None, failures: 0, due: Instant::now(), refreshing_since: None };
        Self { state: Mutex::new(state), refreshes: watch::Sender::default() }
    }
}

impl<T> Entry<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// Returns the last good response, unless it is too old. One that has arrived since the caller began is current, however
    /// short the time to live is.
    fn good(&self, lifetimes: Lifetimes, began: Instant) -> Option<Cached<T>> {
        let good = self.last_good.as_ref()?;
        let held = good.arrived.elapsed();
        let is_current = self.error.is_none() && (held < lifetimes.ttl || good.arrived >= began);
        let age =
            if is_current && good.age.is_zero() { Duration::ZERO } else { good.age.saturating_add(held) };
        if !is_current && held > lifetimes.stale_if_error {
            return None;
        }
        Some(Cached { value: good.value.clone(), freshness: Freshness::of(age) })
    }

    /// Returns the result for a caller that waited for a refresh.
    fn result(&self, lifetimes: Lifetimes, began: Instant) -> Result<Cached<T>, Error> {
        match (self.good(lifetimes, began), &self.error) {
            (Some(good), _) => Ok(good),
            (None, Some(error)) => Err(error.clone()),
            // The refresh has ended without an outcome.
            (None, None) => Err(Error::Config("the refresh has ended without an outcome".to_owned())),
        }
    }

    fn update(&mut self, outcome: Result<Aged<T>, Error>, ttl: Duration) {
        let now = Instant::now();
        match outcome {
            Ok(Aged { value, age }) => {
                self.last_good = Some(Good { value: Arc::new(value), arrived: now, age });
                // A registry that answers from memory may recover soon.
                let ttl = if age.is_zero() { ttl } else { ttl.min(MAX_STALE_TTL) };
                (self.error, self.failures, self.due) = (None, 0, deadline_after(now, ttl));
            }
            Err(error) => {
                let min_delay = ttl.max(MIN_DELAY);
                let backoff = Backoff { min_delay, max_delay: min_delay.max(MAX_DELAY), factor: 2.0 };
                self.due = deadline_after(now, backoff.delay(self.failures, error.retry_after()));
                self.failures = self.failures.saturating_add(1);
                // A registry that refuses is not unavailable, so its earlier response no longer counts. Settings that are briefly
                // wrong, such as a token, say nothing about it.
                if !error.is_outage() && !matches!(error, Error::Config(_)) {
                    self.last_good = None;
                }
                self.error = Some(error);
            }
        }
    }
}
