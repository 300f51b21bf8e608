//! Faults, and how long they last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::host::{Access, Row, Sql};
use super::network::{Chances, FOR_EVER};
use super::state::State;
use super::world::World;

/// A kind of fault. Each seed only uses a few kinds, so that they do not hide each other's effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The primary is suspended.
    Pause,
    /// The primary is suspended repeatedly, with less than a timeout in between.
    Blips,
    CutAll,
    CutServer,
    CutSession,
    /// Open connections of a server pass nothing, but new ones work.
    HangSessions,
    /// One connection never passes anything again.
    HangSession,
    /// Nothing passes between a server and the database.
    Hole,
    HoleAll,
    Refuse,
    OperatorLock,
    ReadOnly,
    Recovery,
    Crash,
    CommitStall,
    LostCommits,
    LostAnswers,
    LateAnswers,
    LostNotifications,
    SlowSteps,
    /// A standby that lacks the last commits is promoted.
    Failover,
    /// An older copy of the database replaces it.
    Restore,
    Kill,
    Terminate,
    SetClock,
    FreezeClock,
    ChangeRows,
    UnreadableRow,
    TruncateLog,
    Defect,
}

impl Fault {
    pub(super) const ALL: [Self; 30] = [
        Self::Pause,
        Self::Blips,
        Self::CutAll,
        Self::CutServer,
        Self::CutSession,
        Self::HangSessions,
        Self::HangSession,
        Self::Hole,
        Self::HoleAll,
        Self::Refuse,
        Self::OperatorLock,
        Self::ReadOnly,
        Self::Recovery,
        Self::Crash,
        Self::CommitStall,
        Self::LostCommits,
        Self::LostAnswers,
        Self::LateAnswers,
        Self::LostNotifications,
        Self::SlowSteps,
        Self::Failover,
        Self::Restore,
        Self::Kill,
        Self::Terminate,
        Self::SetClock,
        Self::FreezeClock,
        Self::ChangeRows,
        Self::UnreadableRow,
        Self::TruncateLog,
        Self::Defect,
    ];

    /// Whether servers can always use the database, and so can find out whether a commit succeeded.
    pub(super) fn lets_servers_settle(self) -> bool {
        matches!(
            self,
            Self::LostCommits
                | Self::LostAnswers
                | Self::CutSession
                | Self::LostNotifications
                | Self::OperatorLock
                | Self::ChangeRows
                | Self::UnreadableRow
        )
    }

    /// Whether the effects of the fault last until the next reconciliation.
    pub(super) fn needs_reconciliation(self) -> bool {
        matches!(self, Self::ChangeRows | Self::UnreadableRow)
    }
}

/// Causes faults until the given time.
pub(super) async fn strike_until(world: &Arc<World>, until: Instant) {
    while Instant::now() < until {
        let pause = world.random(|rng| rng.u64(300..5_000));
        sleep(Duration::from_millis(pause)).await;
        let fault = world.random(|rng| world.profile.faults[rng.usize(..world.profile.faults.len())]);
        world.sim.lock().trace.add(|| format!("fault: {fault:?}"));
        let (striking, world) = (world.clone(), world.clone());
        // Faults may overlap. Those still active at the end are ended together.
        let strike = async move { strike(&striking, fault).await };
        tokio::spawn(world.faults_end.clone().run_until_cancelled_owned(strike));
    }
}

/// Causes a fault, and ends it after a while.
async fn strike(world: &Arc<World>, fault: Fault) {
    match fault {
        Fault::Kill | Fault::Terminate => return world.restart_one(fault == Fault::Kill),
        Fault::Blips => return blip(world).await,
        Fault::Crash => return crash(world).await,
        _ => {}
    }
    let (seconds, server) = world.random(|rng| {
        let longest = if rng.bool() { 2.0 } else { 12.0 };
        (0.2 + rng.f64() * longest, rng.usize(..world.profile.servers))
    });
    let lasts = Duration::from_secs_f64(seconds);
    let begun = begin(&mut world.sim.lock(), world, fault, server, lasts);
    world.sim.changed.notify_waiters();
    if begun {
        sleep(lasts).await;
        end(&mut world.sim.lock(), fault);
        world.sim.lock().trace.add(|| format!("end of {fault:?}"));
        world.sim.changed.notify_waiters();
    }
}

/// Begins a fault. Returns whether it has to be ended explicitly; faults with a time limit end on their own.
fn begin(state: &mut State, world: &World, fault: Fault, server: usize, lasts: Duration) -> bool {
    let until = Instant::now() + lasts;
    match fault {
        Fault::Pause => state.primary_mut().paused_until = Some(until),
        Fault::CutAll => state.cut(|_| true),
        Fault::CutServer => state.cut(|of| of == server),
        Fault::CutSession => {
            if let Some(link) = state.random_link() {
                state.break_link(link);
            }
        }
        Fault::HangSessions => state.stall(Some(server), until),
        Fault::HangSession => {
            if let Some(link) = state.random_link() {
                state.link_mut(link).stalled_until = Some(Instant::now() + FOR_EVER);
            }
        }
        Fault::Hole => state.hole(server, until),
        Fault::HoleAll => (0..world.profile.servers).for_each(|server| state.hole(server, until)),
        Fault::Refuse => state.refuse(server, until),
        Fault::OperatorLock => {
            if let Some(agent_id) = state.random_agent(|_| true) {
                state.trace.add(|| format!("an operator locks {agent_id} for {lasts:?}"));
                state.primary_mut().operator_locks.insert(agent_id, until);
            }
        }
        Fault::ReadOnly | Fault::Recovery => {
            let access = if fault == Fault::ReadOnly { Access::ReadOnly } else { Access::Recovery };
            state.primary_mut().access = access;
            if state.rng.bool() {
                state.cut(|_| true);
            }
            return true;
        }
        Fault::CommitStall => state.primary_mut().commits_stall_until = Some(until),
        Fault::LostCommits => state.chances.commit_lost = 0.5,
        Fault::LostAnswers => state.chances.commit_answer_lost = 0.5,
        Fault::LateAnswers => state.chances.commit_answer_late = 0.3,
        Fault::LostNotifications => state.chances.notification_lost = 0.9,
        Fault::SlowSteps => state.chances.slow_step = 0.4,
        Fault::Failover => {
            let lost = state.rng.usize(..8);
            state.fail_over(lost);
            return true;
        }
        Fault::Restore => {
            let lost = state.rng.usize(5..40);
            state.fail_over(lost);
            return true;
        }
        Fault::SetClock => {
            // Setting the clock forward by less than a few seconds cannot be distinguished from the agents'
            // silence, and heartbeats up to a minute in the future count.
            let by = match state.rng.u8(..3) {
                0 => state.rng.i64(5_000..3_600_000),
                1 => -state.rng.i64(500..8_000),
                _ => -state.rng.i64(70_000..3_600_000),
            };
            state.trace.add(|| format!("the clock is set by {by} ms"));
            state.primary_mut().set_clock(by);
            state.record_upheaval();
        }
        Fault::FreezeClock => {
            let host = state.primary_mut();
            host.frozen_at = Some(host.now());
            state.record_upheaval();
            return true;
        }
        Fault::ChangeRows => state.change_row(),
        Fault::UnreadableRow => {
            if let Some(agent_id) = state.random_agent(is_expendable) {
                let host = state.primary_mut();
                let row = host.image.rows.get(&agent_id).cloned();
                let put = |row| super::host::Record::Sql(Sql::Put(Row { is_readable: false, ..row }));
                row.map(put).into_iter().for_each(|record| host.write(record));
            }
        }
        Fault::TruncateLog => state.primary_mut().write(super::host::Record::Sql(Sql::TruncateLog)),
        Fault::Defect => {
            if let Some(link) = state.random_link() {
                state.link_mut(link).has_defect = true;
            }
        }
        Fault::Kill | Fault::Terminate | Fault::Blips | Fault::Crash => {}
    }
    matches!(
        fault,
        Fault::LostCommits
            | Fault::LostAnswers
            | Fault::LateAnswers
            | Fault::LostNotifications
            | Fault::SlowSteps
    )
}

fn end(state: &mut State, fault: Fault) {
    match fault {
        Fault::ReadOnly | Fault::Recovery => state.primary_mut().access = Access::ReadWrite,
        Fault::FreezeClock => state.thaw_clock(),
        Fault::Failover | Fault::Restore => state.end_split(),
        _ => state.chances = Chances::default(),
    }
}

/// Suspends the primary repeatedly, while keeping it available most of the time.
async fn blip(world: &Arc<World>) {
    let period = world.profile.timeout.saturating_sub(Duration::from_secs(1));
    let lasts = Duration::from_secs_f64(world.random(|rng| 1.6 + rng.f64()));
    loop {
        world.sim.lock().primary_mut().paused_until = Some(Instant::now() + lasts);
        sleep(period).await;
    }
}

/// Crashes and restarts the primary.
async fn crash(world: &Arc<World>) {
    {
        let mut state = world.sim.lock();
        state.primary_mut().is_down = true;
        state.cut(|_| true);
        state.primary_mut().recover_from_crash();
    }
    world.sim.changed.notify_waiters();
    let millis = world.random(|rng| rng.u64(50..5_000));
    sleep(Duration::from_millis(millis)).await;
    world.sim.lock().primary_mut().is_down = false;
    world.sim.changed.notify_waiters();
}

/// Whether an agent may be changed with SQL. The exact state of all other agents is checked.
pub(super) fn is_expendable(agent_id: &str) -> bool {
    agent_id.starts_with("sql-")
}

impl State {
    fn random_link(&mut self) -> Option<usize> {
        let links = self.open_links();
        (!links.is_empty()).then(|| links[self.rng.usize(..links.len())])
    }

    fn random_agent(&mut self, is_eligible: impl Fn(&str) -> bool) -> Option<String> {
        let ids: Vec<String> =
            self.primary().image.rows.keys().filter(|agent_id| is_eligible(agent_id)).cloned().collect();
        (!ids.is_empty()).then(|| ids[self.rng.usize(..ids.len())].clone())
    }

    /// Breaks the connections between some servers and the primary.
    fn cut(&mut self, of_server: impl Fn(usize) -> bool) {
        for link in self.open_links() {
            if of_server(self.link(link).server) && self.link(link).host == self.primary {
                self.break_link(link);
            }
        }
    }

    /// Stalls the open connections of one server, or of all servers.
    fn stall(&mut self, server: Option<usize>, until: Instant) {
        for link in self.open_links() {
            let link = self.link_mut(link);
            if server.is_none_or(|server| server == link.server) {
                link.stalled_until = link.stalled_until.max(Some(until));
            }
        }
    }

    pub(super) fn hole(&mut self, server: usize, until: Instant) {
        self.stall(Some(server), until);
        self.servers[server].hole_until = Some(until);
    }

    fn refuse(&mut self, server: usize, until: Instant) {
        self.cut(|of| of == server);
        self.servers[server].refused_until = Some(until);
    }

    /// Promotes a host that lacks the last commits.
    fn fail_over(&mut self, lost: usize) {
        let (old, new) = (self.primary, self.hosts.len());
        let host = self.primary().without_last_commits(lost);
        self.trace.add(|| format!("host {new} takes over at {:?}, {lost} commits are lost", host.image.head));
        self.hosts.push(host);
        self.primary = new;
        self.record_upheaval();
        let fate = self.rng.u8(..3);
        for id in self.open_links() {
            if self.link(id).host != old {
                continue;
            }
            match fate {
                // The old host disappears without closing its connections.
                0 => self.link_mut(id).stalled_until = Some(Instant::now() + FOR_EVER),
                1 => self.break_link(id),
                // The old host stays alive, and some servers keep their connections to it.
                _ => {
                    if self.rng.bool() {
                        self.break_link(id);
                    }
                }
            }
        }
        self.hosts[old].is_down = fate < 2;
    }

    /// Deletes, changes or inserts a row without the registry.
    fn change_row(&mut self) {
        let Some(agent_id) = self.random_agent(is_expendable) else { return };
        let what = self.rng.u8(..3);
        let number = self.rng.u32(..);
        let host = self.primary_mut();
        let Some(mut row) = host.image.rows.get(&agent_id).cloned() else { return };
        let agent = Arc::make_mut(&mut row.agent);
        let change = match what {
            0 => Sql::Delete(agent_id),
            1 => {
                agent.agent_name = format!("changed {number}");
                Sql::Put(row)
            }
            _ => {
                agent.agent_id = format!("sql-inserted-{}", number % 3);
                Sql::Put(row)
            }
        };
        self.trace.add(|| format!("an operator changes rows: {change:?}"));
        self.primary_mut().write(super::host::Record::Sql(change));
    }
}
