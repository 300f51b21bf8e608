//! Commits that wait for a missing standby. A server cannot know their outcome until they end, and must not
//! claim to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::{Error, RegistryClient};
use tokio::task::JoinSet;

use super::truth::Truth;
use super::{SOON, end, register};
use crate::support::{Cluster, EventStream, Server, agent, eventually, is_long, length, settled};

const WRITERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn commits_wait_for_a_standby_that_is_not_there() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(&cluster.url(), &[]).await);
    }
    register("agent-0").make(&servers[0]).await;
    let revision = Truth::of(&cluster).await.revision;
    let mut streams = Vec::new();
    for server in &servers {
        let knows = async || Truth::of(&cluster).await.is_shown_by(server).await;
        settled("the servers agree before the fault", knows).await;
        streams.push(EventStream::open(server, revision).await);
    }
    let mut writers = Writers::start(&servers);
    writers.have_succeeded().await;

    cluster.set("synchronous_standby_names", Some("nobody")).await;
    eventually("a commit waits", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let mut connection = cluster.connect().await.unwrap();
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut connection).await.unwrap() > 0
    })
    .await;
    // Longer than a server waits for its database.
    tokio::time::sleep(Duration::from_secs(length(20, 8))).await;
    cluster.set("synchronous_standby_names", None).await;

    let ended = Instant::now();
    writers.have_succeeded().await;
    let took = ended.elapsed();
    println!("every writer succeeds again after {took:.2?}");
    assert!(!is_long() || took < SOON, "every writer succeeds again after {took:?}");
    writers.stop().await;
    for (server, stream) in servers.iter().zip(&streams) {
        let equal = async || Truth::of(&cluster).await.is_shown_by(server).await;
        settled("the servers equal the database", equal).await;
        let whole = async || stream.has(&Truth::of(&cluster).await.changes);
        settled("the streams have a reset or every change once", whole).await;
    }
    writers.are_answered_truly(&Truth::of(&cluster).await);
    for server in &mut servers {
        end(server, "after the fault").await;
    }
}

/// The expected state of an agent, according to the responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    Exists,
    Absent,
    /// The agent may or may not exist.
    Unknown,
}

/// Clients that register agents and remove some of them, without retries.
pub(super) struct Writers {
    promises: Arc<Mutex<BTreeMap<String, Promise>>>,
    /// Number of writes answered with 200, per client.
    succeeded: Arc<[AtomicUsize; WRITERS]>,
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Writers {
    pub(super) fn start(servers: &[Server]) -> Self {
        let mut writers = Self {
            promises: Arc::default(),
            succeeded: Arc::default(),
            is_over: Arc::default(),
            tasks: JoinSet::new(),
        };
        for writer in 0..WRITERS {
            let client = servers[writer % servers.len()].client();
            let (promises, succeeded) = (writers.promises.clone(), writers.succeeded.clone());
            let is_over = writers.is_over.clone();
            writers.tasks.spawn(async move {
                for number in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let id = format!("writer-{writer}-{number}");
                    let promise = write(&client, &id, number % 3 == 0, &succeeded[writer]).await;
                    promises.lock().insert(id, promise);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        writers
    }

    /// Waits until each client has had some more successful writes.
    pub(super) async fn have_succeeded(&self) {
        let count = || self.succeeded.iter().map(|one| one.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = count();
        eventually("every writer succeeds", async || {
            count().iter().zip(&before).all(|(now, before)| *now > before + 2)
        })
        .await;
    }

    pub(super) async fn stop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    pub(super) fn are_answered_truly(&self, truth: &Truth) {
        let promises = self.promises.lock();
        let is_broken = |(id, promise): &(&String, &Promise)| match promise {
            Promise::Exists => !truth.ids().any(|one| one == *id),
            Promise::Absent => truth.ids().any(|one| one == *id),
            Promise::Unknown => false,
        };
        let count = |what| promises.values().filter(|promise| **promise == what).count();
        println!(
            "{} agents have to exist, {} have not, {} may",
            count(Promise::Exists),
            count(Promise::Absent),
            count(Promise::Unknown)
        );
        let broken: Vec<_> = promises.iter().filter(is_broken).collect();
        assert!(broken.is_empty(), "answered falsely: {broken:?}");
    }
}

/// Registers an agent, and possibly removes it again.
async fn write(client: &RegistryClient, id: &str, removes: bool, succeeded: &AtomicUsize) -> Promise {
    let registered = client.register(&agent(id, "endure")).await.map(drop);
    let exists = outcome(registered, Promise::Absent, Promise::Exists, succeeded);
    if removes && exists == Promise::Exists {
        return outcome(client.deregister(id).await, Promise::Exists, Promise::Absent, succeeded);
    }
    exists
}

/// Returns the expected state of an agent after a write.
fn outcome(answer: Result<(), Error>, before: Promise, after: Promise, succeeded: &AtomicUsize) -> Promise {
    match answer {
        Ok(()) => {
            succeeded.fetch_add(1, Ordering::Relaxed);
            after
        }
        // A failed request changes nothing, unless it says that it may have.
        Err(Error::Unavailable { detail, .. }) if detail.contains("may have") => Promise::Unknown,
        Err(Error::Unavailable { .. }) => before,
        Err(error) => panic!("{error}"),
    }
}
