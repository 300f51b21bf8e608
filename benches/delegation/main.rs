//! Two simulations of delegation: to slow and failing agents, and during an outage of all agents.
//!
//! `cargo bench --bench delegation` runs both, `-- policies` or `-- outage` one of them. They use Tokio's paused clock, so minutes
//! pass in seconds, and every run has the same results.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

mod agents;
mod outage;
mod policies;
mod tasks;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with('-')).collect();
    let is_wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|one| one == name);
    if is_wanted("policies") {
        policies::run()?;
    }
    if is_wanted("outage") {
        outage::run()?;
    }
    Ok(())
}

/// Runs a simulation on a clock of its own.
fn simulate<T>(simulation: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(simulation)
}
