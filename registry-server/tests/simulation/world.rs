//! The simulated world: its servers, and what is written down for the checks.

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

/// What a seed decides at the beginning.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) servers: usize,
    /// Interval of the agents' heartbeats.
    pub(super) interval: Duration,
    /// The registry's heartbeat timeout.
    pub(super) timeout: Duration,
    pub(super) sweep_interval: Duration,
    pub(super) faults: Vec<Fault>,
    /// Time for which faults strike.
    faults_last: Duration,
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

    /// Returns the time after which all is as it should be, once the faults have ended.
    fn quiet(&self) -> Duration {
        let clock = if self.faults.contains(&Fault::SetClock) { 10 } else { 0 };
        self.timeout * 2 + Duration::from_secs(6 + clock)
    }

    /// Returns the further time after which rows that somebody changed have been noticed.
    fn reconciliation(&self) -> Duration {
        let is_needed = self.faults.iter().any(|fault| fault.needs_reconciliation());
        Duration::from_secs(if is_needed { 65 } else { 0 })
    }
}

/// What is known of an agent that sends heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beats {
    /// When the last heartbeat that was acknowledged was sent.
    pub(super) acknowledged: Option<Instant>,
    /// When the last attempt ended, of an agent that has fallen silent.
    pub(super) died_at: Option<Instant>,
}

/// What clients saw.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) calls: Vec<Call>,
    pub(super) beats: BTreeMap<String, Beats>,
    pub(super) streams: Vec<Stream>,
    /// When the database's clock was set or another history began.
    pub(super) upheavals: Vec<Instant>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

pub(super) struct World {
    pub(super) sim: Arc<Sim>,
    pub(super) profile: Profile,
    seed: u64,
    servers: Mutex<Vec<Option<Arc<Server>>>>,
    pub(super) records: Mutex<Records>,
    pub(super) faults_end: CancellationToken,
    /// No more changes are wanted.
    pub(super) callers_end: CancellationToken,
    /// The end of all clients.
    pub(super) end: CancellationToken,
}

impl World {
    /// Creates a world, lets faults strike for a while, and waits until they must be forgotten.
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

    /// Runs a server, and starts it again whenever its process ended.
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

    /// Ends the process of a server, with SIGKILL or with SIGTERM.
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

    /// Returns the generator of a task: what it draws does not depend on the order in which tasks are woken.
    pub(super) fn rng(&self, task: &str) -> Rng {
        let name = task.bytes().fold(self.seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        Rng::with_seed(name)
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.sim.lock().rng)
    }

    pub(super) fn record_upheaval(&self) {
        self.records.lock().upheavals.push(Instant::now());
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.records.lock().counts.entry(what).or_default() += 1;
    }

    pub(super) fn violation(&self, message: String) {
        self.sim.lock().violation(message);
    }
}
