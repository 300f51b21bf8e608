//! The simulated database as seen by a server. Behaves as PostgreSQL does behind the same traits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::host::{Record, Row};
use super::network::{LinkId, Sim, Use, unavailable};
use super::state::State;
use super::transactions::head;
use crate::store::{
    AgentPage, AgentRow, AgentSender, CommitError, Database, Head, HeartbeatWrite, LastHeartbeats, Listener,
    LockedAgents, LogPage, LogReader, Notification, Purpose, Result, Session, Snapshot, StoreError, Writes,
    WrittenHeartbeats,
};

/// Message of the panic that a session is instructed to cause.
pub(super) const DEFECT: &str = "simulated defect";

/// The database as seen by one server process.
pub(super) struct SimDatabase {
    pub(super) sim: Arc<Sim>,
    pub(super) server: usize,
    pub(super) process: u64,
}

#[async_trait]
impl Database for SimDatabase {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn connect(&self, purpose: Purpose) -> Result<Box<dyn Session>> {
        let link = self.sim.connect(self.server, self.process, Use::Session(purpose)).await?;
        Ok(Box::new(SimSession { sim: self.sim.clone(), link }))
    }

    async fn listen(&self) -> Result<Box<dyn Listener>> {
        let link = self.sim.connect(self.server, self.process, Use::Listener).await?;
        Ok(Box::new(SimSession { sim: self.sim.clone(), link }))
    }

    async fn close(&self) {}
}

/// A session or a listener.
struct SimSession {
    sim: Arc<Sim>,
    link: LinkId,
}

impl Drop for SimSession {
    fn drop(&mut self) {
        self.sim.lock().close(self.link);
        self.sim.changed.notify_waiters();
    }
}

impl SimSession {
    fn meet_defect(&self) {
        let has_defect = std::mem::take(&mut self.sim.lock().link_mut(self.link).has_defect);
        assert!(!has_defect, "{DEFECT}");
    }

    /// Runs a read-only statement.
    async fn read<T>(&self, run: impl FnOnce(&mut State, LinkId) -> Result<T>) -> Result<T> {
        self.meet_defect();
        self.sim.arrive(self.link).await?;
        let result = run(&mut self.sim.lock(), self.link);
        self.sim.answer(self.link).await?;
        result
    }

    /// Runs a statement that writes. Once sent, it is executed even if the client stops waiting.
    async fn execute<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut State, LinkId) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.meet_defect();
        let (sim, link) = (self.sim.clone(), self.link);
        let result = in_background(async move {
            sim.arrive(link).await?;
            let result = run(&mut sim.lock(), link);
            sim.changed.notify_waiters();
            result
        });
        let result = result.await;
        self.sim.answer(self.link).await?;
        result
    }
}

/// Runs a task of the database, which continues even if the client stops waiting.
async fn in_background<T: Send + 'static>(
    task: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (result_tx, result_rx) = oneshot::channel();
    tokio::spawn(async move {
        // A client that gave up only loses the response.
        let _ = result_tx.send(task.await);
    });
    result_rx.await.unwrap_or_else(|_| Err(unavailable("the database stopped")))
}

#[async_trait]
impl LogReader for SimSession {
    async fn read_log(&mut self, from: i64) -> Result<LogPage> {
        let is_in_transaction = self.sim.lock().link_mut(self.link).transaction.is_some();
        let (page, read_at) = self
            .read(|state, link| {
                if is_in_transaction {
                    state.touch(link)?;
                }
                Ok((state.read_log(link, from), Instant::now()))
            })
            .await?;
        if page.is_writable && !is_in_transaction {
            self.sim.lock().record_poll(self.link, read_at);
        }
        Ok(page)
    }
}

#[async_trait]
impl Session for SimSession {
    async fn begin(&mut self) -> Result<Head> {
        self.meet_defect();
        let (sim, link) = (self.sim.clone(), self.link);
        let head = in_background(async move { sim.begin(link).await }).await;
        self.sim.answer(self.link).await?;
        head
    }

    async fn lock_agents(&mut self, agent_ids: &[String]) -> Result<LockedAgents> {
        let agent_ids = agent_ids.to_vec();
        self.read(|state, link| {
            state.touch(link)?;
            let host = state.host_of(link);
            let mut locked = LockedAgents::default();
            for agent_id in agent_ids {
                let Some(row) = host.image.row(&agent_id) else { continue };
                if host.is_locked_by_operator(&agent_id) {
                    locked.held.insert(agent_id);
                } else {
                    locked.rows.insert(agent_id, row);
                }
            }
            let ids = locked.rows.keys().cloned();
            if let Some(transaction) = &mut state.link_mut(link).transaction {
                transaction.agent_ids.extend(ids);
            }
            Ok(locked)
        })
        .await
    }

    async fn commit(&mut self, writes: &Writes) -> std::result::Result<(), CommitError> {
        let writes = Arc::new(writes.clone());
        self.read(|state, link| state.prepare(link, writes)).await?;
        if let Some(transaction) = &mut self.sim.lock().link_mut(self.link).transaction {
            transaction.is_committing = true;
        }
        let (sim, link) = (self.sim.clone(), self.link);
        let committed = in_background(async move { sim.commit(link).await }).await;
        let is_late = self.sim.lock().happens(link, |chances| chances.commit_answer_late);
        if is_late {
            let delay = self.sim.lock().draw_millis(link, 200..7_000);
            sleep(delay).await;
        }
        let answered = self.sim.answer(self.link).await;
        committed.and(answered).map_err(CommitError::Unknown)
    }

    async fn rollback(&mut self) -> Result<()> {
        self.execute(|state, link| {
            state.touch(link)?;
            state.release(link);
            Ok(())
        })
        .await
    }

    async fn write_heartbeats(&mut self, heartbeats: &[HeartbeatWrite]) -> Result<WrittenHeartbeats> {
        let heartbeats = heartbeats.to_vec();
        self.execute(move |state, link| {
            state.check_writable(link)?;
            let locked = state.rows_locked_by_others(link);
            let host = state.host_of_mut(link);
            let operators: Vec<String> = host.operator_locks.keys().cloned().collect();
            let operators: Vec<String> =
                operators.into_iter().filter(|id| host.is_locked_by_operator(id)).collect();
            let is_locked = |id: &str| {
                locked.iter().any(|locked| locked == id) || operators.iter().any(|locked| locked == id)
            };
            let times = host.write_heartbeats(&heartbeats, is_locked);
            Ok(WrittenHeartbeats { now: host.now(), times })
        })
        .await
    }

    async fn last_heartbeats(&mut self, agent_ids: &[String]) -> Result<LastHeartbeats> {
        self.read(|state, link| {
            let host = state.host_of(link);
            let time = |id: &String| Some((id.clone(), host.image.rows.get(id)?.agent.last_heartbeat));
            Ok(LastHeartbeats { head: head(host), times: agent_ids.iter().filter_map(time).collect() })
        })
        .await
    }

    async fn load(&mut self, mut agents: AgentSender) -> Result<Snapshot> {
        let (rows, snapshot) = self
            .read(|state, link| {
                let host = state.host_of(link);
                let rows: Vec<AgentRow> = host.image.rows.values().map(Row::decode).collect();
                Ok((rows, host.snapshot(head(host))))
            })
            .await?;
        for row in rows {
            agents.send(row).await;
        }
        agents.flush().await;
        Ok(snapshot)
    }

    async fn read_agents(&mut self, after: &str, limit: usize) -> Result<AgentPage> {
        self.read(|state, link| {
            let image = &state.host_of(link).image;
            let later =
                image.rows.range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
            let rows = later.take(limit).map(|(_, row)| row.decode()).collect();
            Ok(AgentPage { rows, revision: image.head.revision })
        })
        .await
    }

    async fn read_card(&mut self, _agent_id: &str) -> Result<Option<String>> {
        // Agents of the simulation have no cards.
        Ok(None)
    }

    async fn set_heartbeat_timeout(&mut self, timeout: Duration) -> Result<()> {
        self.execute(move |state, link| {
            state.check_writable(link)?;
            let host = state.host_of_mut(link);
            if host.image.timeout == Some(timeout) {
                return Ok(());
            }
            if host.state_lock.is_some_and(|holder| holder != link) {
                return Err(StoreError::Locked("a transaction holds the state row".into()));
            }
            host.write(Record::Timeout(timeout));
            Ok(())
        })
        .await
    }

    async fn broadcast(&mut self, messages: &[String]) -> Result<()> {
        let messages = messages.to_vec();
        self.execute(move |state, link| {
            if state.host_of(link).access == super::host::Access::Recovery {
                return Err(unavailable("cannot notify during recovery"));
            }
            let host = state.link(link).host;
            for message in messages {
                state.notify(host, None, Some(&message));
            }
            Ok(())
        })
        .await
    }

    async fn acquire_lease(&mut self, name: &str, holder: &str, duration: Duration) -> Result<bool> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.execute(move |state, link| {
            state.check_writable(link)?;
            Ok(state.host_of_mut(link).acquire_lease(&name, &holder, duration))
        })
        .await
    }
}

#[async_trait]
impl Listener for SimSession {
    async fn notified(&mut self) -> Result<Notification> {
        self.meet_defect();
        loop {
            self.sim.answer(self.link).await?;
            let until = {
                let mut state = self.sim.lock();
                let inbox = &mut state.link_mut(self.link).inbox;
                match inbox.front() {
                    Some((due, _)) if *due <= Instant::now() => {
                        let message = inbox.pop_front().and_then(|(_, message)| message);
                        return Ok(message.map_or(Notification::Changed, Notification::Broadcast));
                    }
                    Some((due, _)) => *due,
                    None => Instant::now() + super::network::FOR_EVER,
                }
            };
            self.sim.changed_until(until).await;
        }
    }
}
