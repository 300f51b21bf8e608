//! The state of a simulation.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::host::{Access, Host};
use super::network::{Chances, FOR_EVER, Link, LinkId, ServerLink, Use};
use super::trace::Trace;

/// Shortest jump of a frozen clock, in milliseconds. A shorter one cannot be distinguished from the agents'
/// silence.
const SHORTEST_JUMP: i64 = 3_000;

/// A period in which a server possibly did not reach the database.
#[derive(Clone, Copy)]
pub(super) struct Gap {
    pub(super) server: usize,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
}

impl Gap {
    /// Creates a gap if more than a second has passed since the last success.
    pub(super) fn between(server: usize, last: Option<Instant>, now: Instant) -> Option<Self> {
        let begun = last.filter(|last| now.duration_since(*last) > Duration::from_secs(1))?;
        Some(Self { server, begun, ended: now })
    }
}

/// The complete state of a simulation.
pub(super) struct State {
    pub(super) rng: Rng,
    pub(super) hosts: Vec<Host>,
    /// Index of the host at the database's address.
    pub(super) primary: usize,
    pub(super) links: Vec<Link>,
    pub(super) servers: Vec<ServerLink>,
    pub(super) chances: Chances,
    /// Unusually long intervals between two polls.
    pub(super) poll_gaps: Vec<Gap>,
    /// Unusually long intervals between two responses that were not stale.
    pub(super) response_gaps: Vec<Gap>,
    /// Times when the database's clock jumped or stopped, or another history began.
    pub(super) upheavals: Vec<Instant>,
    /// Violations of the properties that must hold despite all faults.
    pub(super) violations: Vec<String>,
    /// When an old primary that some servers still used was shut down.
    split_ended_at: Option<Instant>,
    pub(super) trace: Trace,
}

impl State {
    pub(super) fn new(seed: u64, servers: usize, is_traced: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let started = Instant::now();
        let retained = if rng.u8(..4) == 0 { 40 } else { 20_000 };
        let mut server = || ServerLink {
            process: 0,
            hole_until: None,
            refused_until: None,
            last_poll: None,
            rngs: std::array::from_fn(|_| rng.fork()),
        };
        let servers = (0..servers).map(|_| server()).collect();
        Self {
            rng,
            hosts: vec![Host::new(started, retained)],
            primary: 0,
            links: Vec::new(),
            servers,
            chances: Chances::default(),
            poll_gaps: Vec::new(),
            response_gaps: Vec::new(),
            upheavals: Vec::new(),
            violations: Vec::new(),
            split_ended_at: None,
            trace: Trace::new(started, is_traced),
        }
    }

    pub(super) fn open(&mut self, server: usize, used_for: Use) -> LinkId {
        let rng = self.servers[server].rng(used_for).fork();
        let is_read_only = self.primary().access == Access::ReadOnly;
        self.links.push(Link {
            server,
            host: self.primary,
            is_broken: false,
            is_closed: false,
            stalled_until: None,
            is_read_only,
            has_defect: false,
            transaction: None,
            is_listening: used_for == Use::Listener,
            rng,
            inbox: VecDeque::new(),
        });
        self.links.len() - 1
    }

    pub(super) fn link(&self, link: LinkId) -> &Link {
        &self.links[link]
    }

    pub(super) fn link_mut(&mut self, link: LinkId) -> &mut Link {
        &mut self.links[link]
    }

    pub(super) fn server(&self, server: usize) -> &ServerLink {
        &self.servers[server]
    }

    pub(super) fn host_of(&self, link: LinkId) -> &Host {
        &self.hosts[self.links[link].host]
    }

    pub(super) fn host_of_mut(&mut self, link: LinkId) -> &mut Host {
        let host = self.links[link].host;
        &mut self.hosts[host]
    }

    pub(super) fn primary(&self) -> &Host {
        &self.hosts[self.primary]
    }

    pub(super) fn primary_mut(&mut self) -> &mut Host {
        let primary = self.primary;
        &mut self.hosts[primary]
    }

    pub(super) fn is_writable(&self, link: LinkId) -> bool {
        !self.link(link).is_read_only && self.host_of(link).access == Access::ReadWrite
    }

    /// Decides by chance whether something happens to a connection.
    pub(super) fn happens(&mut self, link: LinkId, chance: impl Fn(&Chances) -> f64) -> bool {
        let chance = chance(&self.chances);
        self.link_mut(link).rng.f64() < chance
    }

    /// Draws a random duration for a connection.
    pub(super) fn draw_millis(&mut self, link: LinkId, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.link_mut(link).rng.u64(range))
    }

    /// Whether an operator held an agent's row after a moment.
    pub(super) fn was_locked_after(&self, agent_id: &str, moment: Instant) -> bool {
        let held = |host: &Host| host.operator_locks.get(agent_id).is_some_and(|until| *until > moment);
        self.hosts.iter().any(held)
    }

    /// Records that the database's clock jumped or stopped, or that another history begins.
    pub(super) fn record_upheaval(&mut self) {
        self.upheavals.push(Instant::now());
    }

    /// Lets a frozen clock jump to the present, or further.
    pub(super) fn thaw_clock(&mut self) {
        let host = self.primary_mut();
        if let Some(frozen_at) = host.frozen_at.take() {
            let jump = host.now().unix_millis() - frozen_at.unix_millis();
            host.set_clock((SHORTEST_JUMP - jump).max(0));
            self.record_upheaval();
        }
    }

    /// Records a violation.
    pub(super) fn violation(&mut self, message: String) {
        self.trace.add(|| format!("VIOLATION: {message}"));
        self.violations.push(message);
    }

    /// Whether some servers may still use an old primary, or could until recently.
    pub(super) fn is_split(&self, lately: Duration) -> bool {
        let is_alive = |(index, host): (usize, &Host)| index != self.primary && !host.is_down;
        let split_at = |at: Instant| at.elapsed() < lately;
        self.hosts.iter().enumerate().any(is_alive) || self.split_ended_at.is_some_and(split_at)
    }

    /// Shuts down old primaries that some servers still use.
    pub(super) fn end_split(&mut self) {
        for id in self.open_links() {
            if self.link(id).host != self.primary && !self.link(id).hangs_for_ever() {
                if self.rng.bool() {
                    self.break_link(id);
                } else {
                    self.link_mut(id).stalled_until = Some(Instant::now() + FOR_EVER);
                }
            }
        }
        for (index, host) in self.hosts.iter_mut().enumerate() {
            if index != self.primary && !host.is_down {
                (host.is_down, self.split_ended_at) = (true, Some(Instant::now()));
                // Servers that used it go on with another history.
                self.upheavals.push(Instant::now());
            }
        }
    }

    /// Returns the connections that neither side has given up.
    pub(super) fn open_links(&self) -> Vec<LinkId> {
        let open = |link: &Link| !link.is_broken && !link.is_closed;
        self.links.iter().enumerate().filter(|(_, link)| open(link)).map(|(id, _)| id).collect()
    }

    /// Breaks a connection, which ends its transaction.
    pub(super) fn break_link(&mut self, id: LinkId) {
        self.link_mut(id).is_broken = true;
        self.release(id);
    }

    /// Ends the connection's transaction and releases its locks.
    pub(super) fn release(&mut self, id: LinkId) {
        self.link_mut(id).transaction = None;
        let host = self.host_of_mut(id);
        if host.state_lock == Some(id) {
            host.state_lock = None;
        }
    }

    /// Closes a session from the server's side. The database only notices if the network delivers it.
    pub(super) fn close(&mut self, id: LinkId) {
        let link = self.link_mut(id);
        link.is_closed = true;
        let is_heard = link.stalled_until.is_none_or(|until| until <= Instant::now());
        let is_committing = link.transaction.as_ref().is_some_and(|transaction| transaction.is_committing);
        if is_heard && !is_committing {
            self.release(id);
        }
    }

    /// Ends a server process, whose kernel then closes its connections.
    pub(super) fn kill(&mut self, server: usize) {
        let link = &mut self.servers[server];
        (link.process, link.last_poll) = (link.process + 1, None);
        for id in self.open_links() {
            if self.link(id).server == server {
                self.close(id);
            }
        }
    }

    /// Records when a primary read its clock for the poll of a server, whose answer has arrived.
    pub(super) fn record_poll(&mut self, id: LinkId, read_at: Instant) {
        let server = self.link(id).server;
        let last = self.servers[server].last_poll.replace(read_at);
        self.poll_gaps.extend(Gap::between(server, last, read_at));
    }

    /// Notifies the listeners of a host, except those of one server.
    pub(super) fn notify(&mut self, host: usize, except: Option<usize>, message: Option<&str>) {
        let now = Instant::now();
        let hears = |link: &&mut Link| link.is_listening && link.host == host && Some(link.server) != except;
        for link in self.links.iter_mut().filter(hears) {
            if !link.is_closed && link.rng.f64() >= self.chances.notification_lost {
                link.inbox.push_back((now + Duration::from_millis(1), message.map(str::to_owned)));
            }
        }
    }

    /// Whether the database keeps so few changes that servers and watchers may miss some.
    pub(super) fn forgets_soon(&self) -> bool {
        self.primary().retained < 1_000
    }

    /// Ends every fault, but keeps its consequences: broken or read-only sessions, and sessions to lost
    /// hosts.
    pub(super) fn heal(&mut self) {
        self.end_split();
        // A server may not know yet that a connection is broken.
        self.links.iter_mut().for_each(|link| link.has_defect = false);
        for id in self.open_links() {
            let link = self.link_mut(id);
            if !link.hangs_for_ever() {
                link.stalled_until = None;
            }
        }
        self.chances = Chances::default();
        for server in &mut self.servers {
            (server.hole_until, server.refused_until) = (None, None);
        }
        self.thaw_clock();
        let host = self.primary_mut();
        (host.paused_until, host.commits_stall_until) = (None, None);
        host.end_operator_locks();
        (host.access, host.is_down) = (Access::ReadWrite, false);
    }
}
