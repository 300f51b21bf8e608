//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Limit of every wait. Only a defect takes this long, however busy the machine is.
pub const LONG: Duration = Duration::from_secs(300);

/// Heartbeat timeout that no test reaches: no agent goes offline because the machine is busy.
pub const NEVER: Duration = Duration::from_secs(3_600);

/// Waits until a condition holds, and returns how long that took. `what` names the condition.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) -> Duration {
    within(LONG, || what.to_owned(), holds).await
}

/// Waits until a condition holds, and returns how long that took. Fails after a limit, with the description
/// `what`.
pub async fn within<F: Future<Output = bool>>(
    limit: Duration,
    what: impl Fn() -> String,
    mut holds: impl FnMut() -> F,
) -> Duration {
    let began = Instant::now();
    let waiting = async {
        while !holds().await {
            // Most conditions are requests. If each test that waits sent them without a pause that grows, waiting
            // would take most of the processor time of the tests.
            let pause = began.elapsed() / 10;
            tokio::time::sleep(pause.clamp(Duration::from_millis(5), Duration::from_millis(100))).await;
        }
    };
    let held = tokio::time::timeout(limit, waiting).await;
    assert!(held.is_ok(), "not within {limit:?}: {}", what());
    began.elapsed()
}
