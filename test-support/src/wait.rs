//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Limit of every wait. Only a defect takes this long, however busy the machine is.
pub const LONG: Duration = Duration::from_secs(300);

/// Heartbeat timeout that no test reaches: no agent goes offline because the machine is busy.
pub const NEVER: Duration = Duration::from_secs(3_600);

/// Waits until a condition holds, and returns how long that took. `what` names the condition.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) -> Duration {
    let began = Instant::now();
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let held = tokio::time::timeout(LONG, waiting).await;
    assert!(held.is_ok(), "never happened: {what}");
    began.elapsed()
}
