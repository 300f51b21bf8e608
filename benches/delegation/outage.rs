//! Load amplification in an outage of all agents, and the time to recover from it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::TaskError;
use registry_sdk::discovery::{Orchestrator, RetryBudget, TaskQuery};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::agents::{CAPABILITY, Conduct, Fleet, QUICK_FAILURE};
use super::tasks::{Tally, Task, share, tasks};
use super::{Outcome, simulate};

const AGENTS: usize = 10;

/// Average time of a task. The agents have the capacity for twice as many tasks as arrive.
const MEAN_WORK: Duration = Duration::from_millis(500);

/// Time limit of a task. The first agent may use half of it.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Hedging delay: one task in twenty takes longer.
const HEDGE_AFTER: Duration = Duration::from_millis(1_500);

/// Time during which tasks arrive: before, during and after the outage.
const SPAN: Duration = Duration::from_secs(150);

/// Beginning and end of the outage.
const OUTAGE: Range<Duration> = Duration::from_secs(30)..Duration::from_secs(90);

/// Time after the outage during which tasks are counted.
const AFTERWARDS: Duration = Duration::from_secs(30);

const RATES: [u32; 3] = [20, 200, 2_000];

/// Behaviour of all agents in the outage.
#[derive(Clone, Debug)]
enum Fault {
    /// They accept as many tasks as they have capacity for, and never answer.
    Hang,
    /// They accept a task and fail at once.
    Fail(TaskError),
    /// They refuse the connection.
    Refuse(TaskError),
}

pub(crate) fn run() -> Outcome {
    let refused = simulate(refused_connection())?;
    let faults = [
        ("hang", Fault::Hang),
        ("fail at once (500)", Fault::Fail(TaskError::transient("500"))),
        ("refuse the connection", Fault::Refuse(refused)),
    ];
    let unlimited = RetryBudget::default().ratio(1_000.0).min_per_second(1_000_000);
    println!("\n### All ten agents are out for {} s\n", OUTAGE.end.as_secs() - OUTAGE.start.as_secs());
    println!(
        "| they | tasks/s | hedged | attempts per task | lost afterwards | last | p99 | without a budget | lost afterwards | last | p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, fault) in faults {
        for rate in RATES {
            // An immediate response is not hedged.
            let delays = if let Fault::Hang = fault { &[None, Some(HEDGE_AFTER)][..] } else { &[None] };
            for hedge_after in delays.iter().copied() {
                let hedged = if hedge_after.is_some() { "yes" } else { "no" };
                let mut line = format!("| {name} | {rate} | {hedged} |");
                for budget in [RetryBudget::default(), unlimited] {
                    let mut seen = simulate(survive(fault.clone(), rate, hedge_after, budget))?;
                    let [_, p99] = seen.after.percentiles();
                    let (factor, lost) = (seen.factor, seen.after.lost());
                    let until = seen.last_lost.as_secs_f64();
                    write!(line, " {factor:.2} | {lost} | {until:.1} s | {p99:.1} s |")?;
                }
                println!("{line}");
            }
        }
    }
    Ok(())
}

/// Returns the error of an HTTP client for a port where nothing listens.
async fn refused_connection() -> Outcome<TaskError> {
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    match reqwest::get(format!("http://{address}")).await {
        Ok(_) => Err("somebody else listens there now".into()),
        Err(error) => Ok(error.into()),
    }
}

/// Results of a simulation.
struct Seen {
    /// Attempts during the outage, per task that arrived in it.
    factor: f64,
    /// Tasks that arrived after the outage.
    after: Tally,
    /// When the last failed task arrived, after the end of the outage.
    last_lost: Duration,
}

/// The agents in an outage.
#[derive(Debug)]
struct World {
    fault: Fault,
    outage: Range<Instant>,
    slots: BTreeMap<String, Semaphore>,
    attempts_in_outage: AtomicUsize,
}

impl World {
    async fn work(&self, agent_id: &str, time: Duration) -> Result<(), TaskError> {
        let is_out = || self.outage.contains(&Instant::now());
        if is_out() {
            self.attempts_in_outage.fetch_add(1, Ordering::Relaxed);
        }
        match &self.fault {
            Fault::Refuse(error) if is_out() => return Err(error.clone()),
            _ => {}
        }
        let slots =
            self.slots.get(agent_id).ok_or_else(|| TaskError::permanent("it is no agent of these"))?;
        let _slot = slots.acquire().await?;
        match &self.fault {
            Fault::Hang if is_out() => std::future::pending().await,
            Fault::Fail(error) if is_out() => {
                sleep(QUICK_FAILURE).await;
                Err(error.clone())
            }
            _ => {
                sleep(time).await;
                Ok(())
            }
        }
    }
}

async fn survive(
    fault: Fault,
    rate: u32,
    hedge_after: Option<Duration>,
    budget: RetryBudget,
) -> Outcome<Seen> {
    let fleet = Fleet::start([Conduct::Healthy; AGENTS], 0).await?;
    let orchestrator = Orchestrator::builder(fleet.registry.client())
        .directory(fleet.directory().await?)
        .retry_budget(budget)
        .seed(0)
        .build();
    let begin = Instant::now();
    let slots = usize::try_from(u128::from(2 * rate) * MEAN_WORK.as_millis() / 1_000)? / AGENTS;
    let world = Arc::new(World {
        fault,
        outage: begin + OUTAGE.start..begin + OUTAGE.end,
        slots: fleet.agents.keys().map(|id| (id.clone(), Semaphore::new(slots))).collect(),
        attempts_in_outage: AtomicUsize::new(0),
    });
    let mut running = JoinSet::new();
    let tasks = tasks(0, f64::from(rate), MEAN_WORK, SPAN);
    for task in &tasks {
        sleep_until(begin + task.arrival).await;
        running.spawn(delegate(orchestrator.clone(), hedge_after, world.clone(), *task));
    }
    let mut after = Tally::default();
    let mut last_lost = Duration::ZERO;
    for (task, elapsed, is_done) in running.join_all().await {
        if task.arrival < OUTAGE.end {
            continue;
        }
        if !is_done {
            last_lost = last_lost.max(task.arrival.saturating_sub(OUTAGE.end));
        }
        if task.arrival < OUTAGE.end + AFTERWARDS || !is_done {
            after.add(elapsed, is_done, 1);
        }
    }
    let in_outage = tasks.iter().filter(|task| OUTAGE.contains(&task.arrival)).count();
    let factor = share(world.attempts_in_outage.load(Ordering::Relaxed), in_outage);
    Ok(Seen { factor, after, last_lost })
}

/// Delegates a task. Returns the time it took, and whether it succeeded.
async fn delegate(
    orchestrator: Orchestrator,
    hedge_after: Option<Duration>,
    world: Arc<World>,
    task: Task,
) -> (Task, Duration, bool) {
    let began = Instant::now();
    let mut delegation = orchestrator.delegate(TaskQuery::new(CAPABILITY)).time_limit(TIME_LIMIT);
    if let Some(delay) = hedge_after {
        delegation = delegation.hedge_after(delay);
    }
    let outcome = delegation.run(|agent| {
        let world = world.clone();
        async move { world.work(&agent.agent_id, task.work).await }
    });
    let is_done = outcome.await.is_ok();
    (task, began.elapsed(), is_done)
}
