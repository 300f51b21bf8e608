//! A cache of responses to one kind of query.

use std::hash::Hash;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::freshness::Freshness;
use crate::error::Error;

/// A response, and how fresh it is. Dereferences to the response itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cached<T> {
    /// The response, shared with the cache.
    pub value: Arc<T>,
    /// How fresh it is.
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
    /// Without asking the registry again.
    pub(super) ttl: Duration,
    /// If asking again fails.
    pub(super) stale_if_error: Duration,
}

/// Responses to one kind of query. Clones share them.
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

/// The entry of one query.
#[derive(Debug)]
struct Entry<T> {
    /// `None` until the first request has completed.
    last: Mutex<Option<LastOutcome<T>>>,
    /// Held by the caller whose request is under way; the others wait for it.
    refresh: tokio::sync::Mutex<()>,
    /// Number of completed requests.
    completed: AtomicU64,
}

/// Outcome of the last request.
#[derive(Debug)]
enum LastOutcome<T> {
    /// The registry answered.
    Answered(Arc<T>, Instant),
    /// The request failed: why, when, and the last good response with its time.
    Failed(Error, Instant, Option<(Arc<T>, Instant)>),
}

impl<K: Hash + Eq + Clone, T> ResponseCache<K, T> {
    pub(super) fn new(capacity: usize, lifetimes: Lifetimes) -> Self {
        Self { entries: Arc::new(Cache::new(capacity)), lifetimes }
    }

    /// The response to a query: from the cache while it is fresh, else from `fetch`, which runs once however many callers
    /// wait. If it fails, the last good response, up to its maximum age.
    ///
    /// Cancel safe: if the caller that fetches goes away, one of those that wait fetches instead.
    pub(super) async fn get<F>(&self, key: &K, fetch: impl FnOnce() -> F) -> Result<Cached<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let entry = self.entry(key);
        let completed_before = entry.completed.load(Ordering::Acquire);
        if let Some(cached) = entry.last().as_ref().and_then(|last| last.usable_now(&self.lifetimes)) {
            return Ok(cached);
        }
        let _refresh = entry.refresh.lock().await;
        // Another caller may have completed a request meanwhile: its outcome counts, even a failure.
        if entry.completed.load(Ordering::Acquire) > completed_before
            && let Some(last) = &*entry.last()
        {
            return last.to_result(&self.lifetimes);
        }
        let outcome = fetch().await;
        let mut last = entry.last();
        let next = LastOutcome::new(outcome, last.take());
        entry.completed.fetch_add(1, Ordering::AcqRel);
        last.insert(next).to_result(&self.lifetimes)
    }

    fn entry(&self, key: &K) -> Arc<Entry<T>> {
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(Entry::default()));
        let Ok(entry) = self.entries.get_or_insert_with(key, new);
        entry
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
            refresh: tokio::sync::Mutex::default(),
            completed: AtomicU64::default(),
        }
    }
}

impl<T> Entry<T> {
    fn last(&self) -> MutexGuard<'_, Option<LastOutcome<T>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> LastOutcome<T> {
    /// What can be returned without a request. After a failure the last good response counts as fresh for the same time, so
    /// that callers need not wait for the registry to fail each time.
    fn usable_now(&self, lifetimes: &Lifetimes) -> Option<Cached<T>> {
        let (Self::Answered(_, at) | Self::Failed(_, at, _)) = self;
        if at.elapsed() < lifetimes.ttl { self.to_result(lifetimes).ok() } else { None }
    }

    /// The result for callers that waited for this outcome, however short its time to live is.
    fn to_result(&self, lifetimes: &Lifetimes) -> Result<Cached<T>, Error> {
        match self {
            Self::Answered(value, _) => Ok(Cached { value: value.clone(), freshness: Freshness::Fresh }),
            Self::Failed(_, _, Some((value, at))) if at.elapsed() <= lifetimes.stale_if_error => {
                let freshness = Freshness::Stale { age: at.elapsed() };
                Ok(Cached { value: value.clone(), freshness })
            }
            Self::Failed(error, ..) => Err(error.clone()),
        }
    }

    fn new(outcome: Result<T, Error>, before: Option<Self>) -> Self {
        let now = Instant::now();
        match (outcome, before) {
            (Ok(value), _) => Self::Answered(Arc::new(value), now),
            // A registry that refuses is not away: its earlier response no longer counts.
            (Err(error), _) if !error.is_endpoint_failure() => Self::Failed(error, now, None),
            (Err(error), Some(Self::Answered(value, at))) => Self::Failed(error, now, Some((value, at))),
            (Err(error), Some(Self::Failed(_, _, before))) => Self::Failed(error, now, before),
            (Err(error), None) => Self::Failed(error, now, None),
        }
    }
}
