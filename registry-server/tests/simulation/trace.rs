//! The trace of a simulation, for analyzing failures.

use tokio::time::Instant;

/// Trace lines with the simulated time. `None` if tracing is off.
pub(super) struct Trace {
    started: Instant,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(super) fn new(started: Instant, is_traced: bool) -> Self {
        Self { started, lines: is_traced.then(Vec::new) }
    }

    pub(super) fn add(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:8.3} {}", self.started.elapsed().as_secs_f64(), line()));
        }
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}
