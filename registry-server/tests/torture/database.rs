//! Outages of the database: stopped, killed, suspended, disconnected, or with a full disk.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient};
use sqlx::Executor;
use tokio::task::JoinSet;

use crate::support::{Cluster, Server, Store, agent, client, eventually, is_long, length};

/// Maximum duration of a request: the server's limit for the database, with some margin.
const BOUND: Duration = Duration::from_secs(6);

const AGENTS: usize = 100;

/// Only at full length do outages last longer than the timeout: otherwise, a busy machine might make an agent
/// late.
fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("3s", "1h"), "--sweep-interval", "500ms"]
}

#[tokio::test(flavor = "multi_thread")]
async fn server_recovers_from_outages_of_the_database() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let cluster = Arc::new(cluster);
    let mut server = Server::running(&cluster.url(), &flags()).await;
    let traffic = Traffic::start(&server).await;
    for _ in 0..length(5, 1) {
        cluster.stop().await;
        outlast("stopped", &server, &traffic, cluster.begin()).await;

        cluster.kill();
        outlast("killed (SIGKILL)", &server, &traffic, cluster.begin()).await;

        cluster.pause();
        outlast("paused (SIGSTOP)", &server, &traffic, async { cluster.go_on() }).await;

        let mut connection = cluster.connect().await.unwrap();
        for _ in 0..length(20, 5) {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                       AND backend_type = 'client backend'";
            connection.execute(cut).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("connections cut: healthy after {:?}", healthy(&server).await);
    }
    traffic.settle(&mut server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_recovers_from_a_full_disk_on_postgres() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    let Some(cluster) = Cluster::start_in(&disk.folder, &[]).await else { return };
    let mut server = Server::running(&cluster.url(), &flags()).await;
    let traffic = Traffic::start(&server).await;
    for _ in 0..length(5, 1) {
        disk.fill();
        let mend = async {
            disk.make_room();
            // PostgreSQL exits if it cannot write its log, and must then be restarted.
            if cluster.connect().await.is_err() {
                println!("PostgreSQL has ended, and is started again");
                cluster.kill();
                cluster.begin().await;
            }
        };
        outlast("disk full", &server, &traffic, mend).await;
    }
    traffic.settle(&mut server).await;
    server.stop().await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_recovers_from_a_full_disk_on_sqlite() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let store = Store::sqlite_in(&disk.folder);
    let mut server = Server::running(&store.url, &flags()).await;
    let traffic = Traffic::start(&server).await;
    for _ in 0..length(5, 1) {
        disk.fill();
        outlast("disk full", &server, &traffic, async { disk.make_room() }).await;
    }
    traffic.settle(&mut server).await;
    server.stop().await;
}

/// Waits until a fault is detected, lets it last, mends it, and waits until the server has recovered.
async fn outlast(fault: &str, server: &Server, traffic: &Traffic, mend: impl Future<Output = ()>) {
    let client = server.client();
    let noticed =
        eventually("the server is unhealthy", async || client.get_server_health().await.is_err()).await;
    hold(traffic).await;
    mend.await;
    let healed = healthy(server).await;
    println!("{fault}: unhealthy after {noticed:.2?}, healthy again {healed:.2?} after its end");
    // A full disk has no effect until more space is needed.
    let is_prompt = noticed < Duration::from_secs(2) || fault == "disk full";
    assert!(!is_long() || is_prompt, "{fault}: /health said so after {noticed:?}");
    assert!(!is_long() || healed < Duration::from_secs(5), "{fault}: healthy again after {healed:?}");
}

async fn healthy(server: &Server) -> Duration {
    let client = server.client();
    eventually("the server is healthy", async || client.get_server_health().await.is_ok()).await
}

/// Lets the fault last, while checking the responses to agents and readers.
async fn hold(traffic: &Traffic) {
    let until = Instant::now() + Duration::from_millis(length(4_000, 500));
    while Instant::now() < until {
        let agents = traffic.client.list_agents(ListQuery::all()).await.unwrap().agents;
        assert!(agents.len() >= AGENTS, "reads go on from memory");
        let found = traffic.client.search_capabilities("endure").await.unwrap();
        assert_eq!(found.len(), 100);
        let health = traffic.client.check_health("agent-0").await.unwrap();
        assert!(health.is_healthy(), "{health:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    match traffic.client.register(&agent("late", "nothing")).await {
        // A full disk may have space again once PostgreSQL has discarded unfinished work.
        Ok(record) => drop(traffic.registered.lock().insert(record.agent_id)),
        Err(error) => assert!(error.is_retryable() && error.retry_after().is_some(), "{error}"),
    }
}

/// Agents with heartbeats, continuous registrations, and a record of what was acknowledged.
struct Traffic {
    client: RegistryClient,
    /// Registrations that were answered with 200.
    registered: Arc<Mutex<HashSet<String>>>,
    longest: Arc<Mutex<Duration>>,
    is_over: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Traffic {
    async fn start(server: &Server) -> Self {
        let mut traffic = Self {
            client: server.client(),
            registered: Arc::default(),
            longest: Arc::default(),
            is_over: Arc::default(),
            senders: JoinSet::new(),
        };
        for number in 0..AGENTS {
            server.patient_client().register(&agent(&format!("agent-{number}"), "endure")).await.unwrap();
        }
        for sender in 0..4 {
            let (client, is_over) = (server.client(), traffic.is_over.clone());
            let (registered, longest) = (traffic.registered.clone(), traffic.longest.clone());
            traffic.senders.spawn(async move {
                let ended = |began: Instant| {
                    let mut longest = longest.lock();
                    *longest = (*longest).max(began.elapsed());
                };
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let id = format!("new-{sender}-{number}");
                    let began = Instant::now();
                    if client
                        .register(&agent(&id, "come").metadata("filler", "x".repeat(1_000)))
                        .await
                        .is_ok()
                    {
                        registered.lock().insert(id);
                    }
                    ended(began);
                    for place in 0..AGENTS / 4 {
                        let began = Instant::now();
                        // The next round retries failed heartbeats.
                        let _ = client.heartbeat(&format!("agent-{}", sender * (AGENTS / 4) + place)).await;
                        ended(began);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        // The checks need at least one acknowledged registration, however busy the machine is when the fault
        // occurs.
        eventually("a registration is answered", async || !traffic.registered.lock().is_empty()).await;
        traffic
    }

    /// Ends the traffic, and checks that nothing acknowledged was lost: neither in the server's memory, nor
    /// in what a restarted server reads from the database.
    async fn settle(mut self, server: &mut Server) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.senders.join_next().await {
            ended.unwrap();
        }
        let longest = *self.longest.lock();
        assert!(!is_long() || longest < BOUND, "a request took {longest:?}");
        let agents =
            self.client.list_agents(ListQuery::all().status(AgentStatus::Active)).await.unwrap().agents;
        let active = agents.iter().filter(|record| record.agent_id.starts_with("agent-")).count();
        assert_eq!(active, AGENTS, "called offline, and alive");
        server.stop().await;
        server.start().await;
        let agents = client(&server.url()).list_agents(ListQuery::all()).await.unwrap().agents;
        let there: HashSet<_> = agents.into_iter().map(|record| record.agent_id).collect();
        let registered = self.registered.lock();
        let lost: Vec<_> = registered.difference(&there).collect();
        println!(
            "{} registrations were answered 200, {} of them lost; longest request {longest:?}",
            registered.len(),
            lost.len()
        );
        assert!(lost.is_empty() && !registered.is_empty(), "{lost:?}");
    }
}

/// A separate small file system, unmounted on drop.
struct SmallDisk {
    folder: std::path::PathBuf,
    _parent: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts a file system. Prints a message and returns `None` if that is not permitted.
    fn mount(megabytes: usize) -> Option<Self> {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("disk");
        std::fs::create_dir(&folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(&folder);
        if !mount.output().is_ok_and(|output| output.status.success()) {
            println!("not run: a small file system cannot be mounted here");
            return None;
        }
        if crate::support::is_root() {
            // Must be traversable for PostgreSQL's user.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            std::fs::set_permissions(parent.path(), mode).unwrap();
        }
        Some(Self { folder, _parent: parent })
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.folder.join("ballast")
    }

    /// Fills the disk completely.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        for piece in [1_048_576, 4_096, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; piece]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = |folder: &Path| Command::new("umount").arg("-l").arg(folder).output();
        let _ = unmount(&self.folder);
    }
}
