//! The simulated network between the servers and the database hosts, and the entry points of the simulation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::host::Access;
use super::state::State;
use crate::store::{Purpose, Result, StoreError, Writes};

/// Index of a connection in the simulation.
pub(super) type LinkId = usize;

/// Time after which the database ends an idle transaction.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(1);

/// Time after which a server's kernel gives up on unsent data.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(3);

/// Longer than any simulation.
pub(super) const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);

/// The use of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Session(Purpose),
    Listener,
}

/// A connection between a server and a host of the database.
#[expect(clippy::struct_excessive_bools, reason = "independent of each other")]
pub(super) struct Link {
    pub(super) server: usize,
    pub(super) host: usize,
    /// The connection is broken, and both sides know it.
    pub(super) is_broken: bool,
    /// The server has dropped its session.
    pub(super) is_closed: bool,
    /// Nothing passes before this time.
    pub(super) stalled_until: Option<Instant>,
    /// The session was opened while the database was read-only.
    pub(super) is_read_only: bool,
    /// The next operation panics.
    pub(super) has_defect: bool,
    pub(super) transaction: Option<Transaction>,
    pub(super) is_listening: bool,
    /// Random generator for the chances of this connection.
    pub(super) rng: Rng,
    /// Pending notifications of a listener, with their arrival times. `None` stands for a change.
    pub(super) inbox: VecDeque<(Instant, Option<String>)>,
}

impl Link {
    pub(super) fn hangs_for_ever(&self) -> bool {
        self.stalled_until.is_some_and(|until| until > Instant::now() + FOR_EVER / 2)
    }
}

/// An open transaction as seen by the host.
#[derive(Default)]
pub(super) struct Transaction {
    /// Time of the last statement. `None` while a statement runs.
    pub(super) idle_since: Option<Instant>,
    /// Rows locked by the transaction.
    pub(super) agent_ids: Vec<String>,
    /// Changes written by the transaction.
    pub(super) writes: Option<Arc<Writes>>,
    /// COMMIT is on its way, and will be executed even if the client stops waiting.
    pub(super) is_committing: bool,
}

impl Transaction {
    /// Returns the time at which the database ends the transaction unless another statement arrives.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.idle_since.map(|since| since + IDLE_IN_TRANSACTION)
    }
}

/// State of a server's connectivity to the database.
pub(super) struct ServerLink {
    /// Number of the current process. Sessions of earlier processes are dead.
    pub(super) process: u64,
    /// Nothing passes between the server and any host before this time.
    pub(super) hole_until: Option<Instant>,
    /// Connections are refused until this time.
    pub(super) refused_until: Option<Instant>,
    /// Random generators of its sessions, by use, so that chances do not depend on the order in which tasks
    /// wake up.
    pub(super) rngs: [Rng; 4],
    /// Time when a primary last answered a poll of the process.
    pub(super) last_poll: Option<Instant>,
}

/// Faults that occur by chance, with their probabilities.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chances {
    pub(super) slow_step: f64,
    /// The connection breaks before COMMIT arrives.
    pub(super) commit_lost: f64,
    /// The connection breaks after COMMIT was executed.
    pub(super) commit_answer_lost: f64,
    /// The response to COMMIT takes seconds.
    pub(super) commit_answer_late: f64,
    pub(super) notification_lost: f64,
}

/// A simulated database: its hosts, and the network to them.
pub(super) struct Sim {
    state: Mutex<State>,
    /// Notified when a lock is released, a connection breaks, or a fault begins or ends.
    pub(super) changed: Notify,
}

impl Sim {
    pub(super) fn new(seed: u64, servers: usize, is_traced: bool) -> Arc<Self> {
        let state = State::new(seed, servers, is_traced);
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for the given time or for a change, whichever comes first.
    pub(super) async fn changed_until(&self, until: Instant) {
        // The caller checks again in both cases.
        let _ = timeout_at(until, self.changed.notified()).await;
    }

    /// Delivers a message to the host. Fails if the connection breaks meanwhile.
    pub(super) async fn arrive(&self, link: LinkId) -> Result<()> {
        let sent = Instant::now();
        let latency = {
            let mut state = self.lock();
            let chances = state.chances;
            chances.latency(&mut state.link_mut(link).rng)
        };
        sleep(latency).await;
        self.pass(link, sent).await
    }

    /// Delivers a response. Its latency is included in that of the message.
    pub(super) async fn answer(&self, link: LinkId) -> Result<()> {
        self.pass(link, Instant::now()).await
    }

    async fn pass(&self, id: LinkId, sent: Instant) -> Result<()> {
        loop {
            let until = {
                let state = self.lock();
                let (now, link) = (Instant::now(), state.link(id));
                if link.is_broken {
                    return Err(unavailable("the connection is broken"));
                }
                let paused = state.host_of(id).paused_until;
                let until = link.stalled_until.max(paused).filter(|until| *until > now);
                let Some(until) = until else {
                    let was_given_up = link.is_closed && now.duration_since(sent) > TCP_USER_TIMEOUT;
                    return if was_given_up { Err(unavailable("the network gave up")) } else { Ok(()) };
                };
                until
            };
            self.changed_until(until).await;
        }
    }

    /// Opens a connection to the primary.
    pub(super) async fn connect(&self, server: usize, process: u64, used_for: Use) -> Result<LinkId> {
        let latency = {
            let mut state = self.lock();
            let chances = state.chances;
            chances.latency(state.servers[server].rng(used_for))
        };
        sleep(latency).await;
        loop {
            let until = {
                let mut state = self.lock();
                let (now, to) = (Instant::now(), state.server(server));
                if to.process != process {
                    return Err(unavailable("the process was killed"));
                }
                let host = state.primary();
                let until = to.hole_until.max(host.paused_until).filter(|until| *until > now);
                let Some(until) = until else {
                    if host.is_down || to.refused_until.is_some_and(|until| until > now) {
                        return Err(unavailable("the connection was refused"));
                    }
                    if used_for == Use::Listener && host.access == Access::Recovery {
                        return Err(unavailable("cannot listen during recovery"));
                    }
                    return Ok(state.open(server, used_for));
                };
                until
            };
            self.changed_until(until).await;
        }
    }
}

impl Chances {
    fn latency(self, rng: &mut Rng) -> Duration {
        Duration::from_millis(if rng.f64() < self.slow_step { rng.u64(5..150) } else { 1 })
    }
}

impl ServerLink {
    pub(super) fn rng(&mut self, used_for: Use) -> &mut Rng {
        let index = match used_for {
            Use::Session(Purpose::Changes) => 0,
            Use::Session(Purpose::Heartbeats) => 1,
            Use::Session(Purpose::Reads) => 2,
            Use::Listener => 3,
        };
        &mut self.rngs[index]
    }
}

pub(super) fn unavailable(message: &'static str) -> StoreError {
    StoreError::Unavailable(message.into())
}
