//! The database's clock, as this process knows it between two answers.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use registry_sdk::contract::Timestamp;

/// What the database's clock reads now: its last reading, carried on by the monotonic clock.
#[derive(Debug)]
pub(crate) struct DatabaseClock {
    start: Instant,
    /// The database's time at `start`, in milliseconds.
    millis_at_start: AtomicI64,
}

impl DatabaseClock {
    pub(crate) fn new(reading: Timestamp) -> Self {
        Self { start: Instant::now(), millis_at_start: AtomicI64::new(reading.unix_millis()) }
    }

    /// Takes a reading that has just come in. It is a little old by then, which errs on the side of the
    /// agents: no deadline comes too early.
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
