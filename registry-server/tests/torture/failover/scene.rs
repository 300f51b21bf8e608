//! Servers with clients, over a database that loses its last changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use registry_sdk::contract::AgentStatus::{Active, Busy, Offline};
use registry_sdk::{Error, ListQuery};
use tokio::task::JoinSet;

use super::truth::Truth;
use super::{SOON, Write, end, register, status};
use crate::support::{Block, Change, Cluster, EventStream, Server, is_long, settled};

/// Number of agents registered at the beginning.
const AGENTS: usize = 20;

/// Agents that only send heartbeats, throughout the test.
const ALIVE: std::ops::Range<usize> = 10..AGENTS;

/// A position at which a stream can be resumed.
pub(super) struct Position {
    pub(super) id: String,
    pub(super) revision: u64,
}

/// Three servers over one PostgreSQL, and the observations of their clients.
pub(super) struct Scene {
    // Dropped before the servers.
    traffic: Traffic,
    database_url: String,
    /// The third server is shut down during the fault.
    servers: Vec<Server>,
    /// One stream on each of the first two servers.
    streams: Vec<EventStream>,
    kept: Vec<Position>,
    lost: Vec<Position>,
}

impl Scene {
    /// Starts the servers with some agents and changes.
    pub(super) async fn begin(database_url: &str, cluster: &Cluster) -> Self {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Server::running(database_url, &[]).await);
        }
        for number in 0..AGENTS {
            register(format!("agent-{number}")).make(&servers[number % 2]).await;
        }
        let truth = Truth::of(cluster).await;
        let mut streams = Vec::new();
        for server in &servers[..2] {
            settled("the servers agree before the fault", async || truth.is_shown_by(server).await).await;
            streams.push(EventStream::open(server, truth.revision).await);
        }
        let traffic = Traffic::start(&servers[..2]);
        let database_url = database_url.to_owned();
        Self { traffic, database_url, servers, streams, kept: Vec::new(), lost: Vec::new() }
    }

    /// Makes changes that survive the fault.
    pub(super) async fn keep(&mut self, cluster: &Cluster) {
        let writes = [
            status("agent-8", Busy),
            register("kept-0"),
            status("agent-9", Offline),
            Write::Register("agent-9".to_owned(), "second"),
            register("kept-1"),
            Write::Remove("kept-0".to_owned()),
        ];
        self.write(&writes).await;
        self.kept = self.positions(cluster).await;
    }

    /// Makes changes that the database will lose.
    pub(super) async fn lose(&mut self, changes: usize, cluster: &Cluster) {
        let mut writes = vec![
            status("agent-0", Busy),
            register("lost-0"),
            Write::Remove("agent-2".to_owned()),
            status("agent-1", Offline),
            Write::Register("agent-3".to_owned(), "lost"),
        ];
        writes.extend((1..).map(|number| register(format!("lost-{number}"))).take(changes - writes.len()));
        self.write(&writes).await;
        self.lost = self.positions(cluster).await.split_off(self.kept.len());
        assert_eq!(self.lost.len(), changes);
    }

    /// Makes changes, alternating between servers.
    async fn write(&self, writes: &[Write]) {
        for (number, write) in writes.iter().enumerate() {
            write.make(&self.servers[number % 2]).await;
        }
    }

    /// Waits until the streams have everything in the database, and returns the positions at which they can
    /// be resumed.
    async fn positions(&self, cluster: &Cluster) -> Vec<Position> {
        let truth = Truth::of(cluster).await;
        for stream in &self.streams {
            settled("the streams have every change", async || stream.has(&truth.changes)).await;
        }
        let position = |block: Block| {
            block.change().map(|change| Position { id: block.id.unwrap(), revision: change.revision })
        };
        self.streams[0].blocks().into_iter().filter_map(position).collect()
    }

    /// Shuts down a server during the fault.
    pub(super) async fn end_third(&mut self) {
        end(&mut self.servers.pop().unwrap(), "amid the fault").await;
    }

    /// Makes changes in the new history through another server, before these servers see any of them.
    pub(super) async fn change_elsewhere(&self, changes: usize, cluster: &Cluster) {
        let mut writes = vec![
            status("agent-4", Busy),
            register("new-0"),
            Write::Remove("agent-5".to_owned()),
            status("agent-0", Offline),
            Write::Register("lost-0".to_owned(), "again"),
        ];
        writes.extend((1..).map(|number| register(format!("new-{number}"))).take(changes.max(5) - 5));
        writes.truncate(changes);
        let mut elsewhere = Server::running(&cluster.url(), &[]).await;
        for write in &writes {
            write.make(&elsewhere).await;
        }
        elsewhere.stop().await;
    }

    /// Makes writes as soon as the servers accept any, and checks that all servers follow the new history.
    ///
    /// Called right after the end of the fault.
    pub(super) async fn settle(mut self, writes_at_once: usize, cluster: &Cluster) {
        let ended = Instant::now();
        let writes = [
            // The new history already has this status, unlike the lost one. It changes nothing, but must be
            // shown.
            status("agent-1", Active),
            status("agent-1", Active),
            status("agent-1", Busy),
            status("agent-3", Busy),
            Write::Register("agent-4".to_owned(), "third"),
            Write::Register("lost-0".to_owned(), "third"),
            Write::Remove("agent-2".to_owned()),
            status("agent-0", Busy),
            register("newer-0"),
            status("agent-1", Active),
        ];
        self.write(&writes[..writes_at_once]).await;

        self.is_shown("equal the database", ended, cluster).await;
        self.streams_are_whole(cluster).await;
        self.lost_agents_are_unknown(cluster).await;
        for server in &self.servers {
            self.positions_are_told_apart(server, cluster).await;
        }
        let mut late = Server::running(&self.database_url, &[]).await;
        self.positions_are_told_apart(&late, cluster).await;
        late.stop().await;

        // Further changes work as well.
        let began = Instant::now();
        self.write(&[status("agent-6", Busy), register("last"), status("agent-7", Offline)]).await;
        self.is_shown("follow further changes", began, cluster).await;
        self.streams_are_whole(cluster).await;
        self.traffic.end().await;
        for server in &mut self.servers {
            end(server, "after the fault").await;
        }
    }

    async fn is_shown(&self, what: &str, since: Instant, cluster: &Cluster) {
        for server in &self.servers {
            let equal = async || Truth::of(cluster).await.is_shown_by(server).await;
            settled(&format!("the servers {what}"), equal).await;
        }
        let took = since.elapsed();
        println!("the servers {what} after {took:.2?}");
        assert!(!is_long() || took < SOON, "the servers {what} after {took:?}");
    }

    async fn streams_are_whole(&self, cluster: &Cluster) {
        for (number, stream) in self.streams.iter().enumerate() {
            let has = async || stream.has(&Truth::of(cluster).await.changes);
            settled(&format!("stream {number} has a reset or every change once"), has).await;
        }
    }

    /// Agents that the new history lacks must get a 404, so that they register again.
    async fn lost_agents_are_unknown(&self, cluster: &Cluster) {
        let truth = Truth::of(cluster).await;
        for lost in (0..self.lost.len()).map(|number| format!("lost-{number}")) {
            if truth.ids().any(|id| id == lost) {
                continue;
            }
            for server in &self.servers {
                let heartbeat = server.patient_client().heartbeat(&lost).await;
                assert!(
                    matches!(heartbeat, Err(Error::NotFound { .. })),
                    "a heartbeat of {lost}: {heartbeat:?}"
                );
            }
        }
    }

    async fn positions_are_told_apart(&self, server: &Server, cluster: &Cluster) {
        let truth = Truth::of(cluster).await;
        resumes(server, &truth.changes, &self.kept, &self.lost).await;
    }
}

/// Checks that resumed streams continue or are reset, depending on the history of their position.
pub(super) async fn resumes(server: &Server, history: &[Change], kept: &[Position], lost: &[Position]) {
    for Position { id, revision } in sample(kept) {
        let stream = EventStream::resume(server, id, *revision).await;
        let whole = async || stream.has(history);
        settled(&format!("resumed after {id:?}, which was kept"), whole).await;
    }
    for Position { id, revision } in sample(lost) {
        let stream = EventStream::resume(server, id, *revision).await;
        let first = stream.blocks().remove(0);
        assert!(first.is_reset(), "resumed after {id:?}, which is lost: {first:?}");
        settled(&format!("resumed after {id:?}, which is lost"), async || stream.has(history)).await;
    }
}

/// Returns the first, the middle and the last position.
fn sample(positions: &[Position]) -> impl Iterator<Item = &Position> {
    let last = positions.len().saturating_sub(1);
    let numbers = [0, last / 2, last];
    numbers.into_iter().filter_map(|number| positions.get(number))
}

/// Continuous heartbeats and lists. Lists must never fail.
struct Traffic {
    is_over: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Traffic {
    fn start(servers: &[Server]) -> Self {
        let (is_over, mut clients) = (Arc::<AtomicBool>::default(), JoinSet::new());
        for server in servers {
            let (client, is_over) = (server.client(), is_over.clone());
            clients.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    for number in ALIVE {
                        let beaten = client.heartbeat(&format!("agent-{number}")).await;
                        assert!(!matches!(beaten, Err(Error::NotFound { .. })), "agent-{number}: {beaten:?}");
                    }
                    let listed = client.list_agents(ListQuery::all()).await.unwrap().agents;
                    let alive =
                        |number| listed.iter().any(|record| record.agent_id == format!("agent-{number}"));
                    assert!(ALIVE.into_iter().all(alive), "an agent that lives is not listed: {listed:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        Self { is_over, clients }
    }

    async fn end(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}
