//! Reads over several servers. On one server, reads never go back in time, and always include earlier writes
//! on that server. After a second, they also include writes on the other servers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::RegistryClient;
use tokio::task::JoinSet;

use super::{CLIENTS, IDS, name};
use crate::support::{Server, Store, agent, eventually, is_long, length};

/// Age after which a read has to show a write on another server. Only asserted at full length.
const SOON: Duration = Duration::from_secs(1);

/// A write that was answered.
struct Write {
    answered: Instant,
    server: usize,
    id: usize,
    revision: u64,
}

/// State shared by the clients.
#[derive(Default)]
struct Shared {
    writes: Mutex<Vec<Write>>,
    reads: AtomicUsize,
    /// Number of times that each server was killed.
    kills: Mutex<[u64; 3]>,
    is_over: AtomicBool,
}

impl Shared {
    /// Returns the minimum revision that a read must show if it starts now.
    fn due(&self, server: usize, id: usize) -> u64 {
        let now = Instant::now();
        let is_due = |write: &&Write| {
            let is_known = write.server == server || is_long() && now - write.answered > SOON;
            write.id == id && is_known
        };
        self.writes.lock().iter().filter(is_due).map(|write| write.revision).max().unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_never_older_than_earlier_reads_and_writes() {
    let store = Store::postgres().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::running(&store.url, &[]).await);
    }
    let clients: Vec<_> = servers.iter().map(Server::client).collect();
    for id in 0..IDS {
        servers[0].patient_client().register(&agent(&name(0, id), "0")).await.unwrap();
    }
    for client in &clients {
        eventually("every server knows every agent", async || {
            client.get_stats().await.is_ok_and(|stats| stats.total_agents == IDS as u64)
        })
        .await;
    }
    let shared = Arc::<Shared>::default();
    let mut acting = JoinSet::new();
    for number in 0..CLIENTS {
        acting.spawn(act(number, clients.clone(), shared.clone()));
    }
    let kills = length(15, 3);
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_millis(length(4_000, 0))).await;
        let enough = (kill + 1) * 200;
        eventually("there were reads before the next kill", async || {
            shared.reads.load(Ordering::Relaxed) >= enough
        })
        .await;
        let victim = fastrand::usize(..3);
        servers[victim].kill();
        shared.kills.lock()[victim] += 1;
        servers[victim].start().await;
    }
    shared.is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = acting.join_next().await {
        ended.unwrap();
    }
    for id in 0..IDS {
        let of_id = |write: &&Write| write.id == id;
        let last = shared.writes.lock().iter().filter(of_id).map(|write| write.revision).max();
        for client in &clients {
            eventually("every server shows the last write", async || {
                client.get_agent(&name(0, id)).await.is_ok_and(|record| record.revision >= last)
            })
            .await;
        }
    }
    println!(
        "three servers, {kills} kills: {} writes, and {} reads of which none was too old",
        shared.writes.lock().len(),
        shared.reads.load(Ordering::Relaxed)
    );
}

/// Reads and writes agents on randomly chosen servers.
async fn act(number: usize, clients: Vec<RegistryClient>, shared: Arc<Shared>) {
    // The last revision of each agent that this client saw on each server, until the server is killed.
    let mut latest = HashMap::new();
    while !shared.is_over.load(Ordering::Relaxed) {
        let (server, id) = (fastrand::usize(..3), fastrand::usize(..IDS));
        let (client, kills) = (&clients[server], shared.kills.lock()[server]);
        if fastrand::u8(..4) == 0 {
            let capability = fastrand::u32(..).to_string();
            if let Ok(record) = client.register(&agent(&name(0, id), &capability)).await {
                let revision = record.revision.unwrap();
                shared.writes.lock().push(Write { answered: Instant::now(), server, id, revision });
                latest.insert((server, kills, id), revision);
            }
        } else {
            let due = shared.due(server, id);
            if let Ok(record) = client.get_agent(&name(0, id)).await {
                let revision = record.revision.unwrap();
                let before = latest.insert((server, kills, id), revision).unwrap_or_default();
                assert!(revision >= before, "client {number}: {revision} after {before} on server {server}");
                assert!(revision >= due, "client {number}: {revision} on server {server}, {due} was written");
                shared.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Avoids spinning while a server is down, and limits the number of writes to search.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
