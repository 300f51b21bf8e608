//! Number of searches by search text.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::clock::MonotonicClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::RwLock;
use prometheus::{Error, IntCounter, IntCounterVec, Opts, Registry};

use super::{MAX_LABEL_VALUES, OVERFLOW_LABEL};

/// Maximum length of a label, in characters.
const MAX_LABEL_CHARS: usize = 128;

/// Number of texts that may replace others at once, and per minute afterwards.
///
/// Prometheus keeps every series it has seen for hours, so a flood of different texts must not create a
/// series each.
const REPLACEMENTS: Quota = Quota::per_minute(NonZeroU32::MIN.saturating_add(99))
    .allow_burst(NonZeroU32::MIN.saturating_add(MAX_REPLACED_AT_ONCE - 1));
const MAX_REPLACED_AT_ONCE: u32 = 500;

/// A series per text, up to a maximum, and one for all other texts.
///
/// A new text replaces the one that was searched least recently.
pub(super) struct SearchCounters {
    vec: IntCounterVec,
    by_text: RwLock<HashMap<String, Series>>,
    /// Number of searches so far, by which the series are ordered in time.
    clock: AtomicU64,
    replacements: RateLimiter<NotKeyed, InMemoryState, MonotonicClock>,
}

/// The series of one text.
#[derive(Debug)]
struct Series {
    counter: IntCounter,
    last_used: AtomicU64,
}

impl std::fmt::Debug for SearchCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SearchCounters").field("by_text", &self.by_text).finish_non_exhaustive()
    }
}

impl SearchCounters {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let options =
            Opts::new("agent_registry_discovery_requests_total", "Number of searches by search text");
        let vec = IntCounterVec::new(options, &["capability"])?;
        registry.register(Box::new(vec.clone()))?;
        // Present from the start, so that Prometheus sees an increase for the first search.
        vec.with_label_values(&[OVERFLOW_LABEL]);
        Ok(Self {
            vec,
            by_text: RwLock::default(),
            clock: AtomicU64::default(),
            replacements: RateLimiter::direct_with_clock(REPLACEMENTS, MonotonicClock),
        })
    }

    /// Records a search.
    pub(super) fn record(&self, q: &str) {
        let text = q.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let text: String = text.chars().take(MAX_LABEL_CHARS).collect();
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let by_text = self.by_text.read();
        if let Some(series) = by_text.get(&text) {
            return series.record(now);
        }
        let has_place = by_text.len() < MAX_LABEL_VALUES || self.replacements.check().is_ok();
        drop(by_text);
        if has_place && text != OVERFLOW_LABEL {
            self.record_new(text, now);
        } else {
            self.others().inc();
        }
    }

    fn record_new(&self, text: String, now: u64) {
        let mut by_text = self.by_text.write();
        // Another thread may have created this series, or the last one that fits.
        if by_text.len() >= MAX_LABEL_VALUES && !by_text.contains_key(&text) {
            self.free_oldest(&mut by_text);
        }
        let counter = self.vec.with_label_values(&[&text]);
        by_text.entry(text).or_insert_with(|| Series::new(counter)).record(now);
    }

    /// Frees the least recently used series, and adds its count to the others.
    ///
    /// So the sum over all series is always the number of searches, even if the freed series was scraped
    /// before.
    fn free_oldest(&self, by_text: &mut HashMap<String, Series>) {
        let last_used = |(_, series): &(&String, &Series)| series.last_used.load(Ordering::Relaxed);
        let oldest = by_text.iter().min_by_key(last_used).map(|(text, _)| text.clone());
        if let Some((text, series)) = oldest.and_then(|text| by_text.remove_entry(&text)) {
            // Fails if there is no such series, which is fine.
            let _ = self.vec.remove_label_values(&[&text]);
            self.others().inc_by(series.counter.get());
        }
    }

    fn others(&self) -> IntCounter {
        self.vec.with_label_values(&[OVERFLOW_LABEL])
    }

    /// Reads the counts while no series is replaced: in between, its searches would count twice or not at
    /// all.
    pub(super) fn without_replacements<T>(&self, read: impl FnOnce() -> T) -> T {
        let _by_text = self.by_text.read();
        read()
    }
}

impl Series {
    fn new(counter: IntCounter) -> Self {
        Self { counter, last_used: AtomicU64::default() }
    }

    fn record(&self, now: u64) {
        self.counter.inc();
        self.last_used.store(now, Ordering::Relaxed);
    }
}
