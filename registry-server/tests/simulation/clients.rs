//! Clients: agents that send heartbeats, orchestrators that change agents, and readers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use registry_sdk::contract::{AgentStatus, Registration, StatusUpdate};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::checks::judge_reading;
use super::server::{Failure, Server};
use super::state::Gap;
use super::world::World;

/// Agents that send heartbeats until the end, and agents that fall silent.
const STEADY: [&str; 3] = ["steady-0", "steady-1", "sql-0"];
const MORTAL: [&str; 2] = ["mortal-0", "mortal-1"];

/// Agents without heartbeats, each changed by a single caller.
pub(super) const TOYS: [&str; 3] = ["toy-0", "toy-1", "toy-2"];

/// The longest interval that an agent can declare, which makes its deadline very late.
const LONG_INTERVAL: Duration = Duration::from_secs(86_400);

/// A change that a caller requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Registration with a name that no other registration has.
    Register(String),
    SetStatus(AgentStatus),
    Remove,
}

/// A call that changes a toy agent.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) agent_id: &'static str,
    pub(super) server: usize,
    pub(super) wish: Wish,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    pub(super) result: Result<(), Failure>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent_id, server, wish, begun, ended, result } = self;
        let lasted = *ended - *begun;
        write!(f, "{wish:?} of {agent_id}: server {server} answers {result:?} after {lasted:?}")
    }
}

pub(super) fn spawn(world: &Arc<World>) {
    let end = || world.end.clone();
    for agent_id in STEADY {
        tokio::spawn(end().run_until_cancelled_owned(send_heartbeats(world.clone(), agent_id, None)));
    }
    for agent_id in MORTAL {
        let lives = Duration::from_millis(world.rng(agent_id).u64(4_000..15_000));
        let dies_at = Some(Instant::now() + lives);
        tokio::spawn(end().run_until_cancelled_owned(send_heartbeats(world.clone(), agent_id, dies_at)));
    }
    for agent_id in TOYS {
        tokio::spawn(orchestrate(world.clone(), agent_id));
    }
    for server in 0..world.profile.servers {
        tokio::spawn(end().run_until_cancelled_owned(read(world.clone(), server)));
    }
}

/// Registers an agent and sends its heartbeats, as the SDK does.
async fn send_heartbeats(world: Arc<World>, agent_id: &'static str, dies_at: Option<Instant>) {
    world.records.lock().beats.entry(agent_id.to_owned()).or_default();
    let mut rng = world.rng(agent_id);
    let mut preferred = rng.usize(..world.profile.servers);
    let mut is_registered = false;
    loop {
        let next = Instant::now() + world.profile.interval;
        let mut failures = 0;
        loop {
            if dies_at.is_some_and(|dies_at| dies_at <= Instant::now()) {
                let mut records = world.records.lock();
                records.beats.entry(agent_id.to_owned()).or_default().died_at = Some(Instant::now());
                drop(records);
                world.sim.lock().trace.add(|| format!("{agent_id} falls silent"));
                return;
            }
            let sent = Instant::now();
            let outcome = attempt(&world, agent_id, preferred, is_registered).await;
            world.sim.lock().trace.add(|| format!("{agent_id}: server {preferred} answers {outcome:?}"));
            match outcome {
                Ok(()) => {
                    is_registered = true;
                    let mut records = world.records.lock();
                    records.beats.entry(agent_id.to_owned()).or_default().acknowledged = Some(sent);
                    *records.counts.entry("heartbeats").or_default() += 1;
                    break;
                }
                Err(Failure::NotFound) if is_registered => is_registered = false,
                Err(_) => {
                    preferred = (preferred + 1) % world.profile.servers;
                    failures += 1;
                    if failures >= world.profile.servers {
                        sleep(backoff(&mut rng, failures)).await;
                    }
                }
            }
        }
        // Wait for the interval, which has already passed after a long failure.
        sleep_until(next).await;
    }
}

async fn attempt(world: &World, agent_id: &str, server: usize, is_registered: bool) -> Result<(), Failure> {
    let Some(server) = world.server(server) else { return Err(Failure::Disconnected) };
    // Leaves time for a second server before the deadline.
    let limit = world.profile.timeout.saturating_sub(world.profile.interval).mul_f64(0.4);
    let call = async {
        if is_registered {
            server.heartbeat(agent_id).await.map(drop)
        } else {
            let registration = Registration::new(agent_id, agent_id, "http://agent:8002");
            server.register(registration.heartbeat_interval(world.profile.interval)).await.map(drop)
        }
    };
    timeout(limit, call).await.unwrap_or(Err(Failure::Disconnected))
}

fn backoff(rng: &mut Rng, failures: usize) -> Duration {
    let limit = (50 << failures.min(6)).min(1_000);
    Duration::from_millis(rng.u64(1..limit))
}

/// Registers, changes and removes an agent, one call at a time.
async fn orchestrate(world: Arc<World>, agent_id: &'static str) {
    let (mut number, mut rng) = (0, world.rng(agent_id));
    // Only checked between calls, so that no call is abandoned.
    while !world.callers_end.is_cancelled() {
        let pause = if rng.bool() { rng.u64(1..300) } else { rng.u64(300..3_000) };
        sleep(Duration::from_millis(pause)).await;
        let (index, choice) = (rng.usize(..world.profile.servers), rng.u8(..10));
        let Some(server) = world.server(index) else { continue };
        let wish = match choice {
            0..4 => Wish::Register(format!("{agent_id} {number}")),
            4..6 => Wish::SetStatus(AgentStatus::Active),
            6..8 => Wish::SetStatus(AgentStatus::Busy),
            8 => Wish::SetStatus(AgentStatus::Offline),
            _ => Wish::Remove,
        };
        number += 1;
        let begun = Instant::now();
        let result = change(&server, agent_id, &wish).await;
        let call = Call { agent_id, server: index, wish, begun, ended: Instant::now(), result };
        world.sim.lock().trace.add(|| format!("{call:?}"));
        world.count(match result {
            Ok(()) => "changes",
            Err(Failure::Unknown) => "changes that may have been applied",
            Err(Failure::Unchanged) => "changes that were refused",
            Err(_) => "changes that failed otherwise",
        });
        world.records.lock().calls.push(call);
    }
}

async fn change(server: &Server, agent_id: &str, wish: &Wish) -> Result<(), Failure> {
    match wish {
        Wish::Register(name) => {
            let registration = Registration::new(agent_id, name, "http://toy:8002");
            server.register(registration.heartbeat_interval(LONG_INTERVAL)).await.map(drop)
        }
        Wish::SetStatus(status) => server.update_status(agent_id, StatusUpdate::new(*status)).await.map(drop),
        Wish::Remove => server.deregister(agent_id).await,
    }
}

/// Reads agents from one server, and checks the responses.
async fn read(world: Arc<World>, index: usize) {
    let (mut rng, mut last_fresh) = (world.rng(&format!("reader {index}")), None);
    while !world.callers_end.is_cancelled() {
        sleep(Duration::from_millis(rng.u64(100..800))).await;
        let agent = rng.usize(..STEADY.len() + MORTAL.len());
        let agent_id = STEADY.iter().chain(&MORTAL).nth(agent);
        let (Some(agent_id), Some(server)) = (agent_id, world.server(index)) else { continue };
        let asked_at = Instant::now();
        let beats = world.records.lock().beats.get(*agent_id).copied().unwrap_or_default();
        let health = server.check_health(agent_id).await;
        if server.is_stale() || server.killed.is_cancelled() {
            continue;
        }
        // Parts of a server other than its polls may also lose the database.
        let now = Instant::now();
        let gap = Gap::between(index, last_fresh.replace(now), now);
        world.sim.lock().response_gaps.extend(gap);
        if let Ok(health) = health {
            judge_reading(&world, &server, &health, beats, asked_at);
        }
    }
}
