//! Answers that are kept, of one kind of question.

use std::hash::Hash;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

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

/// How much an answer can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is the registry's, or was within the time that answers count as fresh.
    Fresh,
    /// The registry does not answer, and this is what it said last.
    Stale {
        /// How long ago it said so.
        age: Duration,
    },
}

impl Freshness {
    /// Whether the registry does not answer.
    #[must_use]
    pub fn is_stale(self) -> bool {
        matches!(self, Self::Stale { .. })
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
pub(super) struct Shelf<K, T> {
    slots: Arc<Cache<K, Arc<Slot<T>>>>,
    times: Times,
}

impl<K, T> Clone for Shelf<K, T> {
    fn clone(&self) -> Self {
        Self { slots: self.slots.clone(), times: self.times }
    }
}

/// The answer to one question.
#[derive(Debug)]
struct Slot<T> {
    last: Mutex<Last<T>>,
    /// Held by the one who asks, while the others wait.
    asking: tokio::sync::Mutex<()>,
    /// How often the registry has been asked to the end.
    asked: AtomicU64,
}

/// What came of asking.
#[derive(Debug)]
struct Last<T> {
    answer: Option<(Arc<T>, Instant)>,
    /// Where it failed after that: why, and when.
    failure: Option<(Error, Instant)>,
}

impl<K: Hash + Eq + Clone, T> Shelf<K, T> {
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
        if let Some(kept) = self.kept(&slot, false) {
            return kept;
        }
        let _asking = slot.asking.lock().await;
        // Somebody else may have asked meanwhile: then that is the answer, also where it failed.
        if slot.asked.load(Ordering::Acquire) > asked_before
            && let Some(kept) = self.kept(&slot, true)
        {
            return kept;
        }
        let outcome = ask().await;
        slot.note(outcome);
        slot.asked.fetch_add(1, Ordering::AcqRel);
        self.kept(&slot, true).unwrap_or_else(|| Err(Error::Setup("no answer was kept".to_owned())))
    }

    /// What can be said without asking: nothing where the answer is no longer fresh. A failure is as good as
    /// an answer for the same time, so that callers need not wait for each to fail again; where nothing is
    /// kept to give instead, only for those who `waited` for it.
    fn kept(&self, slot: &Slot<T>, waited: bool) -> Option<Result<Cached<T>, Error>> {
        let last = slot.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Times { fresh_for, stale_for } = self.times;
        if let Some((error, at)) = &last.failure {
            if at.elapsed() >= fresh_for && !waited {
                return None;
            }
            let usable = last.answer.as_ref().filter(|(_, at)| at.elapsed() <= stale_for);
            return match usable {
                Some((value, at)) => {
                    let freshness = Freshness::Stale { age: at.elapsed() };
                    Some(Ok(Cached { value: value.clone(), freshness }))
                }
                None => waited.then(|| Err(error.clone())),
            };
        }
        let (value, at) = last.answer.as_ref()?;
        // Who waited for it gets it, however short the time is.
        (waited || at.elapsed() < fresh_for)
            .then(|| Ok(Cached { value: value.clone(), freshness: Freshness::Fresh }))
    }

    fn slot(&self, key: &K) -> Arc<Slot<T>> {
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(Slot::default()));
        let Ok(slot) = self.slots.get_or_insert_with(key, new);
        slot
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        let last = Mutex::new(Last { answer: None, failure: None });
        Self { last, asking: tokio::sync::Mutex::default(), asked: AtomicU64::default() }
    }
}

impl<T> Slot<T> {
    fn note(&self, outcome: Result<T, Error>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(value) => *last = Last { answer: Some((Arc::new(value), Instant::now())), failure: None },
            Err(error) => {
                // A registry that answers "no" is not away: what it said before counts no longer.
                if !error.is_of_the_server() {
                    last.answer = None;
                }
                last.failure = Some((error, Instant::now()));
            }
        }
    }
}
