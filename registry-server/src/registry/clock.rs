//! Estimates the database's clock between two readings.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use registry_sdk::contract::Timestamp;

/// The database's clock: its last reading, advanced by the monotonic clock.
#[derive(Debug)]
pub(crate) struct DatabaseClock {
    start: Instant,
    /// Database time at `start`, in milliseconds.
    millis_at_start: AtomicI64,
}

impl DatabaseClock {
    pub(crate) fn new(reading: Timestamp) -> Self {
        Self { start: Instant::now(), millis_at_start: AtomicI64::new(reading.unix_millis()) }
    }

    /// Adopts a reading that has just arrived.
    ///
    /// The reading is slightly old by then, so the estimate lags behind: no deadline comes too early.
    pub(crate) fn observe(&self, reading: Timestamp) {
        self.millis_at_start.store(reading.unix_millis() - self.elapsed(), Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.millis_at_start.load(Ordering::Relaxed) + self.elapsed())
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}
