//! Transactions of the simulated database, which run one after another, since each holds the state row.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::host::{Host, Record};
use super::network::{Chances, LinkId, Sim, Transaction, unavailable};
use super::state::State;
use crate::store::{Head, LogPage, Result, Writes};

/// Time that a transaction waits for those of other servers.
const LOCK_TIMEOUT: Duration = Duration::from_millis(1_250);

/// Time after which the database notices that the client of a waiting commit is gone.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn head(host: &Host) -> Head {
    Head { position: host.image.head, heartbeat_timeout: host.image.timeout, now: host.now() }
}

impl Sim {
    /// Begins a transaction as soon as no other one holds the state row.
    pub(super) async fn begin(&self, link: LinkId) -> Result<Head> {
        self.arrive(link).await?;
        let gives_up_at = Instant::now() + LOCK_TIMEOUT;
        loop {
            let until = {
                let mut state = self.lock();
                let now = Instant::now();
                if state.link(link).is_broken || state.link(link).is_closed {
                    return Err(unavailable("the connection is gone"));
                }
                state.check_writable(link)?;
                let holder = state.host_of(link).state_lock;
                let holder =
                    holder.and_then(|holder| Some((holder, state.link(holder).transaction.as_ref()?)));
                let holder = holder.map(|(holder, transaction)| (holder, transaction.expires_at()));
                match holder {
                    Some((holder, Some(expires_at))) if expires_at <= now => {
                        state
                            .trace
                            .add(|| format!("session {holder}: its transaction was idle for too long"));
                        state.break_link(holder);
                        self.changed.notify_waiters();
                        continue;
                    }
                    Some((_, expires_at)) if now < gives_up_at => {
                        expires_at.map_or(gives_up_at, |expires_at| expires_at.min(gives_up_at))
                    }
                    Some(_) => return Err(unavailable("another transaction holds the state row")),
                    None => {
                        state.host_of_mut(link).state_lock = Some(link);
                        let transaction = Transaction { idle_since: Some(now), ..Transaction::default() };
                        state.link_mut(link).transaction = Some(transaction);
                        return Ok(head(state.host_of(link)));
                    }
                }
            };
            self.changed_until(until).await;
        }
    }

    /// Executes COMMIT, even if the client stops waiting.
    pub(super) async fn commit(&self, link: LinkId) -> Result<()> {
        if self.lock().breaks_by_chance(link, |chances| chances.commit_lost) {
            self.changed.notify_waiters();
        }
        let arrived = self.arrive(link).await;
        let stalled = arrived.and_then(|()| {
            let mut state = self.lock();
            state.touch(link)?;
            if let Some(transaction) = &mut state.link_mut(link).transaction {
                transaction.idle_since = None;
            }
            Ok(state.host_of(link).commits_stall_until)
        });
        let stalled = match stalled {
            Ok(stalled) => stalled,
            Err(error) => {
                let mut state = self.lock();
                let is_closed = state.link(link).is_closed;
                if let Some(transaction) = &mut state.link_mut(link).transaction {
                    transaction.is_committing = false;
                }
                if is_closed {
                    state.release(link);
                }
                return Err(error);
            }
        };
        if let Some(stalled) = stalled {
            self.wait_for_standby(link, stalled).await;
        }
        self.finish_commit(link)
    }

    /// Waits until a synchronous standby has the commit, or the client is gone.
    async fn wait_for_standby(&self, link: LinkId, until: Instant) {
        let (mut until, mut was_closed) = (until, false);
        while until > Instant::now() {
            self.changed_until(until).await;
            let state = self.lock();
            if state.link(link).is_broken || state.host_of(link).commits_stall_until.is_none() {
                return;
            }
            if state.link(link).is_closed && !was_closed {
                was_closed = true;
                until = until.min(Instant::now() + CLIENT_CHECK_INTERVAL);
            }
        }
    }

    fn finish_commit(&self, link: LinkId) -> Result<()> {
        let mut state = self.lock();
        let transaction = state.link_mut(link).transaction.take();
        let writes = transaction.and_then(|transaction| transaction.writes);
        let Some(writes) = writes else { return Err(unavailable("the transaction was ended")) };
        if !writes.is_empty() {
            let (server, host) = (state.link(link).server, state.link(link).host);
            for event in &writes.events {
                state.trace.add(|| {
                    let (position, agent) = (event.position(), &event.agent);
                    let (id, kind) = (&agent.agent_id, event.kind);
                    format!("host {host}: {position:?} {kind:?} {id} {:?} {}", agent.status, agent.agent_name)
                });
            }
            let has_events = !writes.events.is_empty();
            let now = state.host_of(link).now();
            state.host_of_mut(link).write(Record::Commit { writes, now });
            if has_events {
                state.notify(host, Some(server), None);
            }
        }
        state.release(link);
        state.breaks_by_chance(link, |chances| chances.commit_answer_lost);
        self.changed.notify_waiters();
        Ok(())
    }
}

impl State {
    pub(super) fn check_writable(&self, link: LinkId) -> Result<()> {
        if self.is_writable(link) { Ok(()) } else { Err(unavailable("the transaction is read-only")) }
    }

    /// Checks that the transaction is still open, and records that its client is alive.
    pub(super) fn touch(&mut self, link: LinkId) -> Result<()> {
        let now = Instant::now();
        let transaction = self.link_mut(link).transaction.as_mut();
        let Some(transaction) = transaction else { return Err(unavailable("there is no transaction")) };
        if transaction.expires_at().is_some_and(|expires_at| expires_at < now) {
            self.break_link(link);
            return Err(unavailable("the transaction was idle for too long"));
        }
        transaction.idle_since = Some(now);
        Ok(())
    }

    /// Writes in the open transaction.
    pub(super) fn prepare(&mut self, link: LinkId, writes: Arc<Writes>) -> Result<()> {
        self.touch(link)?;
        self.check_writable(link)?;
        let head = self.host_of(link).image.head.revision;
        let revisions = writes.events.iter().map(|event| event.agent.revision);
        if !revisions.eq((head + 1..).take(writes.events.len())) {
            self.violation(format!("a transaction after revision {head} has gaps: {:?}", writes.events));
        }
        if let Some(transaction) = &mut self.link_mut(link).transaction {
            transaction.writes = Some(writes);
        }
        Ok(())
    }

    fn breaks_by_chance(&mut self, link: LinkId, chance: impl Fn(&Chances) -> f64) -> bool {
        let breaks = self.happens(link, chance);
        if breaks {
            self.trace.add(|| format!("session {link}: the connection breaks at COMMIT"));
            self.break_link(link);
        }
        breaks
    }

    /// Returns the agents whose rows are locked by transactions of other sessions.
    pub(super) fn rows_locked_by_others(&self, link: LinkId) -> Vec<String> {
        let holder = self.host_of(link).state_lock.filter(|holder| *holder != link);
        let transaction = holder.and_then(|holder| self.link(holder).transaction.as_ref());
        let is_open = |transaction: &&Transaction| {
            transaction.expires_at().is_none_or(|expires_at| expires_at > Instant::now())
        };
        transaction.filter(is_open).map(|transaction| transaction.agent_ids.clone()).unwrap_or_default()
    }

    pub(super) fn read_log(&self, link: LinkId, from: i64) -> LogPage {
        let host = self.host_of(link);
        LogPage { head: head(host), is_writable: self.is_writable(link), entries: host.image.log_from(from) }
    }
}
