//! The simulated world: its servers, and the records for the checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::clients::{self, Call};
use super::faults::{self, Fault};
use super::network::Sim;
use super::server::Server;
use super::watchers::{self, Stream};

/// Parameters that a seed determines at the beginning.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) servers: usize,
    /// Interval of the agents' heartbeats.
    pub(super) interval: Duration,
    /// Heartbeat timeout of the registry.
    pub(super) timeout: Duration,
    pub(super) sweep_interval: Duration,
    pub(super) faults: Vec<Fault>,
    /// Period during which faults occur.
    pub(super) faults_last: Duration,
}

impl Profile {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let count = rng.usize(1..=5);
        let faults: Vec<Fault> = (0..count).map(|_| Fault::ALL[rng.usize(..Fault::ALL.len())]).collect();
        let interval = Duration::from_millis(rng.u64(1_000..1_500));
        let has_blips = faults.contains(&Fault::Blips);
        let timeout = if has_blips { Duration::from_secs(9) } else { interval * rng.u32(2..=4) };
        let seconds = if has_blips { 60 } else { rng.u64(10..30) };
        let faults_last = Duration::from_secs(seconds);
        let sweep_interval = Duration::from_secs(rng.u64(1..=5));
        Self { servers: rng.usize(2..=3), sweep_interval, interval, timeout, faults, faults_last }
    }

    /// Returns the time after the faults within which everything must be back to normal.
    fn quiet(&self) -> Duration {
        let clock = if self.faults.contains(&Fault::SetClock) { 10 } else { 0 };
        self.timeout * 2 + Duration::from_secs(6 + clock)
    }

    /// Returns the additional time for noticing rows that were changed with SQL.
    fn reconciliation(&self) -> Duration {
        let is_needed = self.faults.iter().any(|fault| fault.needs_reconciliation());
        Duration::from_secs(if is_needed { 65 } else { 0 })
    }
}

/// State of an agent that sends heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beats {
    /// When the last acknowledged heartbeat was sent.
    pub(super) acknowledged: Option<Instant>,
    /// When the agent fell silent, at the end of its last attempt.
    pub(super) died_at: Option<Instant>,
}

/// Observations of clients.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) calls: Vec<Call>,
    pub(super) beats: BTreeMap<String, Beats>,
    pub(super) streams: Vec<Stream>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

pub(super) struct World {
    pub(super) sim: Arc<Sim>,
    pub(super) profile: Profile,
    seed: u64,
    servers: Mutex<Vec<Option<Arc<Server>>>>,
    pub(super) records: Mutex<Records>,
    pub(super) faults_end: CancellationToken,
    /// Cancelled to stop the callers that change agents.
    pub(super) callers_end: CancellationToken,
    /// Cancelled to stop all clients.
    pub(super) end: CancellationToken,
}

impl World {
    /// Creates a world, causes faults for a while, and then waits until their effects must be gone.
    pub(super) async fn live(seed: u64, is_traced: bool) -> Arc<Self> {
        let profile = Profile::draw(&mut Rng::with_seed(!seed));
        let sim = Sim::new(seed, profile.servers, is_traced);
        sim.lock().trace.add(|| format!("{profile:?}"));
        let servers = Mutex::new((0..profile.servers).map(|_| None).collect());
        let world = Arc::new(Self {
            sim,
            servers,
            profile,
            seed,
            records: Mutex::default(),
            faults_end: CancellationToken::new(),
            callers_end: CancellationToken::new(),
            end: CancellationToken::new(),
        });
        for index in 0..world.profile.servers {
            tokio::spawn(world.clone().run_server(index));
        }
        clients::spawn(&world);
        watchers::spawn(&world);
        sleep(Duration::from_secs(2)).await;
        faults::strike_until(&world, Instant::now() + world.profile.faults_last).await;
        world.faults_end.cancel();
        world.sim.lock().heal();
        world.sim.lock().trace.add(|| "the faults end".to_owned());
        world.sim.changed.notify_waiters();
        sleep(world.profile.quiet()).await;
        world.callers_end.cancel();
        sleep(world.profile.reconciliation()).await;
        world
    }

    /// Runs a server, and restarts it whenever its process ends.
    async fn run_server(self: Arc<Self>, index: usize) {
        let mut rng = self.rng(&format!("server {index}"));
        loop {
            self.sim.lock().trace.add(|| format!("server {index} starts"));
            if let Some(server) = Server::start(&self.sim, index, &self.profile).await {
                self.sim.lock().trace.add(|| format!("server {index} runs"));
                self.servers.lock()[index] = Some(server.clone());
                tokio::select! {
                    biased;
                    () = server.killed.cancelled() => {}
                    () = server.failed() => {
                        self.sim.lock().trace.add(|| format!("server {index} ends because a task failed"));
                        self.count("failed processes");
                        server.kill();
                    }
                }
                self.servers.lock()[index] = None;
            } else {
                self.sim.lock().kill(index);
            }
            sleep(Duration::from_millis(rng.u64(50..1_500))).await;
        }
    }

    /// Ends a server process, with SIGKILL or SIGTERM.
    pub(super) fn restart_one(&self, is_killed: bool) {
        let index = self.random(|rng| rng.usize(..self.profile.servers));
        if let Some(server) = self.server(index) {
            if is_killed {
                server.kill();
            } else {
                tokio::spawn(async move { server.terminate().await });
            }
        }
    }

    pub(super) fn server(&self, index: usize) -> Option<Arc<Server>> {
        self.servers.lock()[index].clone()
    }

    pub(super) fn running_servers(&self) -> Vec<Arc<Server>> {
        self.servers.lock().iter().flatten().cloned().collect()
    }

    /// Returns a random generator for a task, independent of the order in which tasks wake up.
    pub(super) fn rng(&self, task: &str) -> Rng {
        let name = task.bytes().fold(self.seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        Rng::with_seed(name)
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.sim.lock().rng)
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.records.lock().counts.entry(what).or_default() += 1;
    }

    pub(super) fn violation(&self, message: String) {
        self.sim.lock().violation(message);
    }
}
