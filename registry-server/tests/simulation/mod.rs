//! A simulated world: two or three registries over one simulated database, with a paused clock, in one
//! thread.
//!
//! A seed determines everything: delays, faults, and the behaviour of clients.
//!
//! The registries are real. Below them is a database that behaves as PostgreSQL does behind the traits of
//! `store`, with hosts that fail over, and a network that loses, delays and holds messages. Above them are
//! agents that keep their interval or fall silent, callers that change agents, readers and watchers. The
//! method follows `FoundationDB` and `TigerBeetle`: the faults are followed by a quiet period, after which
//! everything must be as the contract says.
//!
//! `SIMULATION_SEEDS` sets the number of seeds. `SIMULATION_SEED=n` runs a single seed and prints its trace.
//!
//! | defect | faults that cause it | check that detects it |
//! |---|---|---|
//! | the server's view and streams continue across a change of history | `Failover`, `Restore` | `check_view`, `check_streams`: "ends in another history", an event that is not next |
//! | the server waits for or keeps a hanging session | `HangSession`, `HangSessions`, `Hole` | "took …" of a call, "does not work after the quiet", "runs 10 s after SIGTERM" |
//! | the server keeps a session that was opened read-only | `ReadOnly` | "does not work after the quiet" |
//! | the server never notices a row changed with SQL | `ChangeRows` | `check_view` |
//! | each short outage extends a dead agent's deadline by a whole timeout | `Blips` | `judge_reading`: "shows … online … after it died" |
//! | a panic of a task goes unnoticed | `Defect` | `check_view`, `check_streams`, "does not work after the quiet" |
//! | the response to a commit is lost, and the caller gets "nothing was changed" or 404 | `LostAnswers`, `LateAnswers`, `CutSession`, `CommitStall` | `check_calls`: "was not to be applied" |
//! | a commit counts as done or lost too early | `LostCommits`, `LateAnswers`, `Pause` | `check_calls`: "is in no history" |

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and shows what it saw"
)]

mod checks;
mod clients;
mod database;
mod faults;
mod histories;
mod host;
mod network;
mod server;
mod state;
mod trace;
mod transactions;
mod watchers;
mod world;

use std::collections::BTreeMap;
use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use network::Sim;
use registry_sdk::contract::{AgentStatus, Registration};
use server::Server;
use tokio::time::sleep_until;
use world::{Profile, World};

/// Default number of seeds, overridden by `SIMULATION_SEEDS`.
const SEEDS: u64 = 500;

/// Maximum number of trace lines in the report of a failure.
const SHOWN_LINES: usize = 400;

/// The outcome of a seed.
struct Outcome {
    violations: Vec<String>,
    trace: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
}

fn run(seed: u64, is_traced: bool) -> Outcome {
    // The registry draws random marks from this thread's generator.
    fastrand::seed(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let world = runtime.block_on(async {
        let world = World::live(seed, is_traced).await;
        checks::judge(&world).await;
        world
    });
    let counts = checks::counts(&world);
    let mut state = world.sim.lock();
    let (violations, mut trace) = (std::mem::take(&mut state.violations), state.trace.take());
    // Tokio decides the order in which several waiting tasks wake up.
    trace.sort();
    Outcome { violations, trace, counts }
}

/// Hides the messages of panics that are part of the simulation.
fn silence_simulated_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let is_simulated =
                info.payload_as_str().is_some_and(|message| message.contains(database::DEFECT));
            if !is_simulated {
                previous(info);
            }
        }));
    });
}

/// Runs a failed seed again and returns its trace.
fn report(seed: u64) -> String {
    let (first, second) = (run(seed, true), run(seed, true));
    let is_reproducible = first.trace == second.trace;
    let skipped =
        if env::var("SIMULATION_SEED").is_ok() { 0 } else { first.trace.len().saturating_sub(SHOWN_LINES) };
    let trace = first.trace[skipped..].join("\n");
    let violations = first.violations.join("\n  ");
    format!("{trace}\nseed {seed} (replays identically: {is_reproducible}):\n  {violations}")
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().unwrap())
}

#[test]
fn registries_survive_every_fault() {
    silence_simulated_panics();
    if let Some(seed) = number("SIMULATION_SEED") {
        let report = report(seed);
        let outcome = run(seed, false);
        assert!(outcome.violations.is_empty(), "{report}");
        println!("{report}\n{:?}", outcome.counts);
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let first = number("SIMULATION_FIRST_SEED").unwrap_or(1);
    let seconds = number("SIMULATION_SECONDS").unwrap_or(u64::MAX);
    let (next, begun) = (AtomicU64::new(first), Instant::now());
    let failed = Mutex::new(Vec::new());
    let counts = Mutex::new(BTreeMap::<&str, u64>::new());
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= first.saturating_add(seeds) || begun.elapsed().as_secs() >= seconds {
            return;
        }
        let outcome = run(seed, false);
        let mut all = counts.lock().unwrap();
        outcome.counts.into_iter().for_each(|(what, count)| *all.entry(what).or_default() += count);
        *all.entry("seeds").or_default() += 1;
        if !outcome.violations.is_empty() {
            failed.lock().unwrap().push((seed, outcome.violations));
        }
    };
    let threads = number("SIMULATION_THREADS").unwrap_or_else(cores);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    println!("{:?} in {:?}", counts.into_inner().unwrap(), begun.elapsed());
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    if let Some((seed, _)) = failed.first() {
        let list: Vec<_> = failed
            .iter()
            .map(|(seed, violations)| {
                format!("{seed}: {}", violations[0].chars().take(300).collect::<String>())
            })
            .collect();
        panic!("{}\n\n{} seeds failed:\n{}", report(*seed), failed.len(), list.join("\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn missed_deadline_is_written_soon_after_an_outage_that_prevented_the_sweep() {
    let sweep_interval = Duration::from_secs(60);
    let profile = Profile {
        servers: 1,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(3),
        sweep_interval,
        faults: Vec::new(),
        faults_last: Duration::ZERO,
    };
    let sim = Sim::new(1, profile.servers, false);
    let server = Server::start(&sim, 0, &profile).await.unwrap();
    let swept_at = server.started_at + sweep_interval;
    server.register(Registration::new("silent", "Silent", "http://silent:8002")).await.unwrap();
    sleep_until(swept_at - Duration::from_secs(2)).await;
    sim.lock().hole(0, swept_at + Duration::from_secs(2));
    sleep_until(swept_at + Duration::from_secs(7)).await;
    let status = sim.lock().primary().image.rows["silent"].agent.status;
    assert_eq!(status, AgentStatus::Offline);
    server.terminate().await;
}

#[test]
fn seed_reproduces_the_same_world() {
    silence_simulated_panics();
    for seed in 1..=10 {
        let (first, second) = (run(seed, true).trace, run(seed, true).trace);
        let differs = first.iter().zip(&second).position(|(first, second)| first != second);
        if let Some(line) = differs {
            panic!("seed {seed} differs at line {line}: {} and {}", first[line], second[line]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
