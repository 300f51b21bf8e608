//! Answers that are cached, of one kind of question.

use std::hash::Hash;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::freshness::Freshness;
use crate::error::Error;

/// An answer, and whether it is the registry's present one. Reads like the answer itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cached<T> {
    /// The answer, shared with the cache.
    pub value: Arc<T>,
    /// How much it can be relied on.
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

/// How long answers are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// Without refresh again.
    pub(super) ttl: Duration,
    /// Where refresh again fails.
    pub(super) stale_if_error: Duration,
}

/// The answers to one kind of question. Clones share them.
#[derive(Debug)]
pub(super) struct ResponseCache<K, T> {
    slots: Arc<Cache<K, Arc<Slot<T>>>>,
    lifetimes: Lifetimes,
}

impl<K, T> Clone for ResponseCache<K, T> {
    fn clone(&self) -> Self {
        Self { slots: self.slots.clone(), lifetimes: self.lifetimes }
    }
}

/// The answer to one question.
#[derive(Debug)]
struct Slot<T> {
    /// `None` until somebody has completed to the end.
    last: Mutex<Option<LastOutcome<T>>>,
    /// Held by the one who asks, while the others wait.
    refresh: tokio::sync::Mutex<()>,
    /// How often the registry has been completed to the end.
    completed: AtomicU64,
}

/// What came of refresh.
#[derive(Debug)]
enum LastOutcome<T> {
    /// The registry answered.
    Answered(Arc<T>, Instant),
    /// It failed: why, when, and what it had answered before that still counts.
    Failed(Error, Instant, Option<(Arc<T>, Instant)>),
}

impl<K: Hash + Eq + Clone, T> ResponseCache<K, T> {
    pub(super) fn new(capacity: usize, lifetimes: Lifetimes) -> Self {
        Self { slots: Arc::new(Cache::new(capacity)), lifetimes }
    }

    /// The answer to a question: from the shelf while it is fresh, else from `fetch`, which runs once however
    /// many callers wait. Where it fails, the last good answer, up to its time.
    ///
    /// May be cancelled: where the one who asks goes away, one of those who wait asks instead.
    pub(super) async fn get<F>(&self, key: &K, fetch: impl FnOnce() -> F) -> Result<Cached<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let slot = self.slot(key);
        let completed_before = slot.completed.load(Ordering::Acquire);
        if let Some(cached) = slot.last().as_ref().and_then(|last| last.usable_now(&self.lifetimes)) {
            return Ok(cached);
        }
        let _refresh = slot.refresh.lock().await;
        // Somebody else may have completed meanwhile: then that is the answer, also where it failed.
        if slot.completed.load(Ordering::Acquire) > completed_before
            && let Some(last) = &*slot.last()
        {
            return last.to_result(&self.lifetimes);
        }
        let outcome = fetch().await;
        let mut last = slot.last();
        let next = LastOutcome::new(outcome, last.take());
        slot.completed.fetch_add(1, Ordering::AcqRel);
        last.insert(next).to_result(&self.lifetimes)
    }

    fn slot(&self, key: &K) -> Arc<Slot<T>> {
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(Slot::default()));
        let Ok(slot) = self.slots.get_or_insert_with(key, new);
        slot
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
            refresh: tokio::sync::Mutex::default(),
            completed: AtomicU64::default(),
        }
    }
}

impl<T> Slot<T> {
    fn last(&self) -> MutexGuard<'_, Option<LastOutcome<T>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> LastOutcome<T> {
    /// What can be said without refresh. After a failure the last good answer is as good as a fresh one for the
    /// same time, so that callers need not wait for the registry to fail each time.
    fn usable_now(&self, lifetimes: &Lifetimes) -> Option<Cached<T>> {
        let (Self::Answered(_, at) | Self::Failed(_, at, _)) = self;
        if at.elapsed() < lifetimes.ttl { self.to_result(lifetimes).ok() } else { None }
    }

    /// What those are to_result who waited for it, however short the time is that it counts as fresh.
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
            // A registry that answers "no" is not away: what it said before counts no longer.
            (Err(error), _) if !error.is_endpoint_failure() => Self::Failed(error, now, None),
            (Err(error), Some(Self::Answered(value, at))) => Self::Failed(error, now, Some((value, at))),
            (Err(error), Some(Self::Failed(_, _, before))) => Self::Failed(error, now, before),
            (Err(error), None) => Self::Failed(error, now, None),
        }
    }
}
