//! Answers that are kept, of one kind of question.

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
pub(super) struct Times {
    /// Without asking again.
    pub(super) fresh_for: Duration,
    /// Where asking again fails.
    pub(super) stale_for: Duration,
}

/// The answers to one kind of question. Clones share them.
#[derive(Debug)]
pub(super) struct ResponseCache<K, T> {
    slots: Arc<Cache<K, Arc<Slot<T>>>>,
    times: Times,
}

impl<K, T> Clone for ResponseCache<K, T> {
    fn clone(&self) -> Self {
        Self { slots: self.slots.clone(), times: self.times }
    }
}

/// The answer to one question.
#[derive(Debug)]
struct Slot<T> {
    /// `None` until somebody has asked to the end.
    last: Mutex<Option<Last<T>>>,
    /// Held by the one who asks, while the others wait.
    asking: tokio::sync::Mutex<()>,
    /// How often the registry has been asked to the end.
    asked: AtomicU64,
}

/// What came of asking.
#[derive(Debug)]
enum Last<T> {
    /// The registry answered.
    Answered(Arc<T>, Instant),
    /// It failed: why, when, and what it had answered before that still counts.
    Failed(Error, Instant, Option<(Arc<T>, Instant)>),
}

impl<K: Hash + Eq + Clone, T> ResponseCache<K, T> {
    pub(super) fn new(capacity: usize, times: Times) -> Self {
        Self { slots: Arc::new(Cache::new(capacity)), times }
    }

    /// The answer to a question: from the shelf while it is fresh, else from `ask`, which runs once however
    /// many callers wait. Where it fails, the last good answer, up to its time.
    ///
    /// May be cancelled: where the one who asks goes away, one of those who wait asks instead.
    pub(super) async fn get<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<Cached<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let slot = self.slot(key);
        let asked_before = slot.asked.load(Ordering::Acquire);
        if let Some(kept) = slot.last().as_ref().and_then(|last| last.without_asking(&self.times)) {
            return Ok(kept);
        }
        let _asking = slot.asking.lock().await;
        // Somebody else may have asked meanwhile: then that is the answer, also where it failed.
        if slot.asked.load(Ordering::Acquire) > asked_before
            && let Some(last) = &*slot.last()
        {
            return last.told(&self.times);
        }
        let outcome = ask().await;
        let mut last = slot.last();
        let next = Last::new(outcome, last.take());
        slot.asked.fetch_add(1, Ordering::AcqRel);
        last.insert(next).told(&self.times)
    }

    fn slot(&self, key: &K) -> Arc<Slot<T>> {
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(Slot::default()));
        let Ok(slot) = self.slots.get_or_insert_with(key, new);
        slot
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { last: Mutex::default(), asking: tokio::sync::Mutex::default(), asked: AtomicU64::default() }
    }
}

impl<T> Slot<T> {
    fn last(&self) -> MutexGuard<'_, Option<Last<T>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Last<T> {
    /// What can be said without asking. After a failure the last good answer is as good as a fresh one for the
    /// same time, so that callers need not wait for the registry to fail each time.
    fn without_asking(&self, times: &Times) -> Option<Cached<T>> {
        let (Self::Answered(_, at) | Self::Failed(_, at, _)) = self;
        if at.elapsed() < times.fresh_for { self.told(times).ok() } else { None }
    }

    /// What those are told who waited for it, however short the time is that it counts as fresh.
    fn told(&self, times: &Times) -> Result<Cached<T>, Error> {
        match self {
            Self::Answered(value, _) => Ok(Cached { value: value.clone(), freshness: Freshness::Fresh }),
            Self::Failed(_, _, Some((value, at))) if at.elapsed() <= times.stale_for => {
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
