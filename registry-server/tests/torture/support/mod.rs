//! Servers, databases, load and measurements for the scenarios.

mod agreement;
mod callers;
mod cluster;
mod database_proxy;
mod event_stream;
mod fake_clock;
mod load;
mod server;
mod switch;
mod witness;
mod witnesses;

use std::time::{Duration, Instant};

pub(crate) use test_support::{
    Database as Store, LONG, agent, eventually, impatient_client as client, patient_client, within,
};

pub(crate) use agreement::{equal_the_database, follow_each_other, recovered};
pub(crate) use callers::{Callers, Seen};
pub(crate) use cluster::{Cluster, is_root};
pub(crate) use database_proxy::{DatabaseProxy, Effect};
pub(crate) use event_stream::{Block, Change, EventStream};
pub(crate) use fake_clock::FakeClock;
pub(crate) use load::{Connection, Load};
pub(crate) use server::{Server, free_port, run_program, start_error};
pub(crate) use switch::Switch;
pub(crate) use witness::{Acknowledged, Outages, Reader, ShownOffline, wall_clock};
pub(crate) use witnesses::Witnesses;

/// Finds an installed program by its names, of which Debian's may not be on the `PATH`.
///
/// If it is not installed, prints a message and returns `None`, or fails if the variable `REQUIRE_…` is 1.
pub(crate) fn installed(names: [&'static str; 2], version: &str) -> Option<&'static str> {
    let found = names.into_iter().find(|program| {
        let mut command = std::process::Command::new(program);
        command.arg(version).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    if found.is_none() {
        let name = names[0];
        let variable = format!("REQUIRE_{}", name.to_uppercase());
        let is_required = std::env::var(variable).is_ok_and(|required| required == "1");
        assert!(!is_required, "{name} is not installed");
        println!("not run: {name} is not installed (Debian: apt-get install {name})");
    }
    found
}

/// Whether the scenarios run at full length.
pub(crate) fn is_long() -> bool {
    std::env::var("TORTURE").is_ok_and(|length| length == "long")
}

/// Returns the first value at full length, and the second one otherwise.
pub(crate) fn length<T>(long: T, short: T) -> T {
    if is_long() { long } else { short }
}

/// Waits until a check succeeds, and returns how long that took. A failure reports the last finding of the
/// check.
pub(crate) async fn settled(what: &str, check: impl AsyncFn() -> Result<(), String>) -> Duration {
    let began = Instant::now();
    while let Err(found) = check().await {
        assert!(began.elapsed() < LONG, "{what}: {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// Returns the time limit for recovering from a fault.
///
/// At full length, this is the promised time. Otherwise, no busy machine exceeds it.
pub(crate) fn recovery() -> Duration {
    Duration::from_secs(length(5, 60))
}

/// Defines tests that run a scenario, an `async fn(Store)`, on each database.
macro_rules! on_both {
    ($name:ident) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                super::$name(crate::support::Store::sqlite()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                super::$name(crate::support::Store::postgres().await).await;
            }
        }
    };
}
pub(crate) use on_both;
