//! Comparison of policies among agents of which one is slow or fails.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_sdk::discovery::{EjectionSettings, Orchestrator, Policy, TaskQuery};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::agents::{CAPABILITY, Conduct, Fleet, SLOTS};
use super::tasks::{Tally, Task, tasks};
use super::{Outcome, simulate};

/// Average time that a healthy agent takes for a task.
const MEAN_WORK: Duration = Duration::from_secs(1);

/// Time during which tasks arrive.
const SPAN: Duration = Duration::from_secs(600);

const SEEDS: u64 = 5;

const POLICIES: [Policy; 5] =
    [Policy::LeastLoaded, Policy::RoundRobin, Policy::LeastRecentlyUsed, Policy::Random, Policy::Rank];

/// Parameters of a simulation.
#[derive(Clone, Copy, Debug)]
struct Scene {
    title: &'static str,
    /// Agents in addition to the eight healthy ones.
    unhealthy: &'static [Conduct],
    /// Load, as a share of the healthy agents' capacity.
    load: f64,
    /// Number of orchestrators. Each delegates a part of the tasks, and only sees its own.
    orchestrators: usize,
    /// Interval at which agents report their load, if orchestrators search the registry for each task. `None`: they use a directory.
    heartbeats: Option<Duration>,
}

const SCENE: Scene = Scene {
    title: "",
    unhealthy: &[Conduct::FailsAtOnce, Conduct::Slow],
    load: 0.5,
    orchestrators: 1,
    heartbeats: None,
};

const SCENES: [Scene; 6] = [
    Scene { title: "One agent fails half of its tasks at once", ..SCENE },
    Scene {
        title: "One agent fails half of its tasks late",
        unhealthy: &[Conduct::FailsLate, Conduct::Slow],
        ..SCENE
    },
    Scene { title: "At a tenth of the load", load: 0.05, ..SCENE },
    Scene { title: "Five orchestrators", orchestrators: 5, ..SCENE },
    Scene {
        title: "The registry is searched for each task, and the agents send a heartbeat every 30 s",
        heartbeats: Some(Duration::from_secs(30)),
        ..SCENE
    },
    Scene { title: "The eight healthy agents alone", unhealthy: &[], ..SCENE },
];

pub(crate) fn run() -> Outcome {
    let never = EjectionSettings::default().consecutive_failures(usize::MAX).min_success_rate(0.0);
    for scene in SCENES {
        println!("\n### {}\n", scene.title);
        println!(
            "| | p50 | p99 | tasks lost | attempts per task | p50 | p99 | tasks lost | attempts per task |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for policy in POLICIES {
            let mut line = format!("| `{policy:?}` |");
            for ejection in [EjectionSettings::default(), never] {
                let mut tally = Tally::default();
                for seed in 0..SEEDS {
                    tally.merge(simulate(delegate_all(scene, policy, ejection, seed))?);
                }
                let [p50, p99] = tally.percentiles();
                let (lost, of, attempts) = (tally.lost(), tally.tasks(), tally.attempts());
                write!(line, " {p50:.2} s | {p99:.1} s | {lost} of {of} | {attempts:.3} |")?;
            }
            println!("{line}");
        }
    }
    Ok(())
}

async fn delegate_all(scene: Scene, policy: Policy, ejection: EjectionSettings, seed: u64) -> Outcome<Tally> {
    let healthy = 8;
    let conducts = scene.unhealthy.iter().copied().chain(std::iter::repeat_n(Conduct::Healthy, healthy));
    let fleet = Arc::new(Fleet::start(conducts, seed).await?);
    let directory = fleet.directory().await?;
    let orchestrators: Vec<_> = (0..scene.orchestrators)
        .map(|number| {
            let builder = Orchestrator::builder(fleet.registry.client()).ejection(ejection);
            let builder = builder.seed(seed + 1_000 * number as u64);
            match scene.heartbeats {
                Some(_) => builder.build(),
                None => builder.directory(directory.clone()).build(),
            }
        })
        .collect();
    if let Some(interval) = scene.heartbeats {
        let fleet = fleet.clone();
        tokio::spawn(async move { fleet.send_heartbeats(interval).await.map_err(|error| error.to_string()) });
    }
    let capacity = f64::from(u32::try_from(healthy * SLOTS)?) / MEAN_WORK.as_secs_f64();
    let query = TaskQuery::new(CAPABILITY).policy(policy);
    let (begin, mut running) = (Instant::now(), JoinSet::new());
    for (number, task) in tasks(seed, scene.load * capacity, MEAN_WORK, SPAN).into_iter().enumerate() {
        sleep_until(begin + task.arrival).await;
        let orchestrator = orchestrators[number % orchestrators.len()].clone();
        running.spawn(delegate(orchestrator, query.clone(), fleet.clone(), task));
    }
    let mut tally = Tally::default();
    for (elapsed, is_done, attempts) in running.join_all().await {
        tally.add(elapsed, is_done, attempts);
    }
    Ok(tally)
}

/// Delegates a task. Returns the time it took, whether it succeeded, and the number of attempts.
async fn delegate(
    orchestrator: Orchestrator,
    query: TaskQuery,
    fleet: Arc<Fleet>,
    task: Task,
) -> (Duration, bool, usize) {
    let (began, attempts) = (Instant::now(), AtomicUsize::new(0));
    let outcome = orchestrator.delegate(query).run(|agent| {
        attempts.fetch_add(1, Ordering::Relaxed);
        let agent = fleet.agents.get(&agent.agent_id).cloned();
        async move {
            let agent = agent.ok_or_else(|| registry_sdk::TaskError::permanent("it is no agent of these"))?;
            agent.work(task.work).await
        }
    });
    let is_done = outcome.await.is_ok();
    (began.elapsed(), is_done, attempts.into_inner())
}
