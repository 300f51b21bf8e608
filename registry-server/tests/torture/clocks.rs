//! Clocks that somebody sets: an hour forward, and back.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use registry_sdk::contract::AgentStatus;
use registry_sdk::{Agent, RegistryClient};

use crate::support::{Cluster, Server, Store, agent, client, eventually, is_long, length};

/// Among the tests an agent may be late: others run beside it.
fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("2s", "6s"), "--sweep-interval", "200ms"]
}
const INTERVAL: Duration = Duration::from_millis(400);
const AGENTS: usize = 50;

/// A wall clock to be set, for processes that are started with its environment. The monotonic clock stays what it is.
struct FakeClock {
    file: tempfile::NamedTempFile,
    library: String,
}

impl FakeClock {
    /// `None`, said aloud, where libfaketime is not installed.
    fn new() -> Option<Self> {
        let found =
            Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output().unwrap();
        let library = String::from_utf8(found.stdout).unwrap().lines().next().map(str::to_owned);
        if library.is_none() {
            println!("not run: libfaketime is not installed (Debian: apt-get install faketime)");
        }
        let clock = Self { file: tempfile::NamedTempFile::new().unwrap(), library: library? };
        // The database's user reads it as well.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(clock.file.path(), mode).unwrap();
        clock.set("+0");
        Some(clock)
    }

    fn set(&self, off: &str) {
        std::fs::write(self.file.path(), format!("{off}\n")).unwrap();
    }

    fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.path().to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    fn server(&self, database_url: &str) -> Server {
        let server = Server::new(database_url, &flags());
        self.environment()
            .into_iter()
            .fold(server, |server, (name, value)| server.with_environment(name, value))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_on_sqlite() {
    let Some(clock) = FakeClock::new() else { return };
    let store = Store::sqlite();
    jumps(&clock, clock.server(&store.url)).await;
}

/// The server's clock and the database's jump together, as on one host.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_on_postgres() {
    let Some(clock) = FakeClock::new() else { return };
    let Some(cluster) = Cluster::start(&clock.environment()).await else { return };
    jumps(&clock, clock.server(&cluster.url())).await;
}

async fn jumps(clock: &FakeClock, mut server: Server) {
    server.start().await;
    let client = server.client();
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| Agent::new(client.clone(), agent(&format!("agent-{number}"), "work")))
        .collect();
    for agent in &agents {
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    client.register(&agent("dead", "rest")).await.unwrap();
    eventually("the dead one is offline", async || status(&client, "dead").await == AgentStatus::Offline)
        .await;
    for off in ["+3600", "+0", "-3600", "+0"] {
        // The dead one may be among the active for one time-out after each jump: its silence counts anew.
        clock.set(off);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(length(10, 4)) {
            let stats = client.get_stats().await.unwrap();
            assert!(stats.active_agents >= AGENTS as u64, "{off}: {stats:?}; {}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // And who has fallen silent after it is still noticed.
        client.heartbeat("dead").await.unwrap();
        let took = eventually("the dead one is offline", async || {
            status(&client, "dead").await == AgentStatus::Offline
        })
        .await;
        println!(
            "{off} s: 0 of {AGENTS} agents were called offline; one that fell silent was after {took:.1?}"
        );
        assert!(!is_long() || took < Duration::from_secs(8), "{took:?}");
    }
    // A clock that goes back while the server is down.
    server.stop().await;
    clock.set("-3600");
    server.start().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let stats = client.get_stats().await.unwrap();
        assert!(stats.active_agents >= AGENTS as u64, "{stats:?}; {}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("set back while the server was down: 0 of {AGENTS} agents were called offline");
    for agent in agents {
        agent.shutdown_within(Duration::from_secs(1)).await;
    }
}

async fn status(client: &RegistryClient, id: &str) -> AgentStatus {
    client.get_agent(id).await.unwrap().status
}

/// An agent in a process whose clock jumps keeps its pace.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_agents() {
    let Some(clock) = FakeClock::new() else { return };
    let store = Store::sqlite();
    let server = Server::running(&store.url, &flags()).await;
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "clocks::an_agent_in_a_process_of_its_own", "--ignored"])
        .env("TORTURE_REGISTRY", server.url())
        .envs(clock.environment())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let client = server.client();
    eventually("the agent is there", async || client.get_agent("alone").await.is_ok()).await;
    for off in ["+3600", "+0", "-3600"] {
        clock.set(off);
        let (began, before) = (Instant::now(), client.get_agent("alone").await.unwrap().last_heartbeat);
        while began.elapsed() < Duration::from_secs(length(10, 3)) {
            let health = client.check_health("alone").await.unwrap();
            assert!(health.is_healthy(), "{off}: {health:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            client.get_agent("alone").await.unwrap().last_heartbeat > before,
            "{off}: it has fallen silent"
        );
        println!("an agent's own clock {off} s: its heartbeats went on");
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

#[tokio::test]
#[ignore = "it is the process of another test"]
async fn an_agent_in_a_process_of_its_own() {
    let url = std::env::var("TORTURE_REGISTRY").unwrap();
    let alone = Agent::new(client(&url), agent("alone", "work"));
    alone.register().await.unwrap();
    alone.start_heartbeat(INTERVAL).unwrap();
    std::future::pending::<()>().await;
}
