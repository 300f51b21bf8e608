//! Backups and restores as described in `docs/operations.md`, with running agents.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use registry_sdk::contract::MaintenanceRequest;
use registry_sdk::{Agent, Watch, WatchEvent};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{LONG, Server, Store, agent, eventually, installed};

/// The guide for operators, so that the tests run its commands.
const GUIDE: &str = include_str!("../../../../docs/operations.md");

const INTERVAL: Duration = Duration::from_millis(200);

/// Runs the guide's block that begins with a comment, in a folder.
fn run_block(folder: &Path, comment: &str, changes: &[(&str, &str)]) {
    let (_, block) = GUIDE.split_once(&format!("```sh\n# {comment}\n")).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let block = changes.iter().fold(block.to_owned(), |block, (from, to)| block.replace(from, to));
    let mut shell = Command::new("sh");
    if let Ok(binaries) = std::env::var("POSTGRES_BIN") {
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{binaries}:{path}"));
    }
    let output = shell.args(["-ec", &block]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{block}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A registry with SDK agents, and a watch that has listed them.
struct Scene {
    /// Runs throughout the test.
    running: Agent,
    /// Runs throughout the test, and is in maintenance during the backup.
    drained: Agent,
    watch: Watch,
}

impl Scene {
    async fn begin(server: &Server) -> Self {
        let client = server.patient_client();
        let running = start(server, "running").await;
        let drained = start(server, "drained").await;
        client.set_maintenance("drained", &MaintenanceRequest::new("disk")).await.unwrap();
        let mut watch = client.watch();
        assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.len() == 2));
        Self { running, drained, watch }
    }

    /// Makes changes that a restore undoes. Returns an agent that registered after the backup.
    async fn change(&self, server: &Server) -> Agent {
        let client = server.patient_client();
        client.register(&agent("lost", "work")).await.unwrap();
        client.end_maintenance("drained").await.unwrap();
        start(server, "new").await
    }

    /// Checks that the state of the backup is restored, and that the running agents have registered again.
    async fn check_restored(mut self, server: &Server, new: &Agent) {
        shows_the_backup(server).await;
        let client = server.patient_client();
        for agent in [&self.running, &self.drained, new] {
            eventually("the agent is registered", async || {
                let record = client.get_agent(agent.agent_id()).await;
                record.is_ok_and(|record| record.instance_id.as_deref() == Some(agent.instance_id()))
            })
            .await;
        }
        assert_eq!(client.get_agent("drained").await.unwrap().maintenance.unwrap().reason, "disk");
        let listed_anew = async {
            loop {
                let event = self.watch.next().await.unwrap();
                if matches!(event, WatchEvent::Listed(agents) if agents.iter().all(|one| one.agent_id != "lost"))
                {
                    return;
                }
            }
        };
        tokio::time::timeout(LONG, listed_anew).await.unwrap();
        for agent in [&self.running, &self.drained, new] {
            agent.shutdown().await;
        }
    }
}

/// Waits until the server shows the backup. A running server detects the other history shortly after the
/// restore.
async fn shows_the_backup(server: &Server) {
    let client = server.patient_client();
    eventually("the server shows the backup", async || {
        client.get_agent("lost").await.is_err_and(|error| error.is_not_found())
            && client.get_agent("drained").await.is_ok_and(|record| record.maintenance.is_some())
    })
    .await;
}

async fn start(server: &Server, agent_id: &str) -> Agent {
    let agent = Agent::new(server.patient_client(), agent(agent_id, "work"));
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    agent
}

/// The server is killed, so that it leaves its latest changes in a separate file.
#[tokio::test(flavor = "multi_thread")]
async fn sqlite_is_restored_from_a_backup_of_a_running_server() {
    if installed(["sqlite3", "sqlite3"], "--version").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("agent-registry.db").display());
    let mut server = Server::running(&url, &[]).await;
    let scene = Scene::begin(&server).await;
    run_block(folder.path(), "sqlite: back up, while the server runs", &[]);
    run_block(folder.path(), "sqlite: check", &[]);
    let new = scene.change(&server).await;
    server.kill();
    assert!(folder.path().join("agent-registry.db-wal").exists());
    run_block(folder.path(), "sqlite: restore, while the server is stopped", &[]);
    server.start().await;
    scene.check_restored(&server, &new).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_restored_in_place_under_running_servers() {
    let store = Store::postgres().await;
    let folder = tempfile::tempdir().unwrap();
    let changes = [("postgres://agents@127.0.0.1:5432/agents", &*store.url)];
    let mut servers = [Server::running(&store.url, &[]).await, Server::running(&store.url, &[]).await];
    let scene = Scene::begin(&servers[0]).await;
    run_block(folder.path(), "postgres: back up, while the servers run", &changes);
    let new = scene.change(&servers[1]).await;
    run_block(folder.path(), "postgres: restore in place", &changes);
    scene.check_restored(&servers[0], &new).await;
    shows_the_backup(&servers[1]).await;
    for server in &mut servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_restored_into_a_new_database() {
    let store = Store::postgres().await;
    let folder = tempfile::tempdir().unwrap();
    let restored = format!("{}_restored", store.url);
    let (server_url, name) = restored.rsplit_once('/').unwrap();
    let administration = format!("{server_url}/postgres");
    let changes = [
        ("postgres://agents@127.0.0.1:5432/agents", &*store.url),
        ("postgres://agents@127.0.0.1:5432/postgres", &*administration),
        ("postgres://agents@127.0.0.1:5432/restored", &*restored),
        ("postgres restored", &*format!("postgres {name}")),
    ];
    let mut server = Server::running(&store.url, &[]).await;
    let scene = Scene::begin(&server).await;
    run_block(folder.path(), "postgres: back up, while the servers run", &changes);
    let new = scene.change(&server).await;
    server.stop().await;
    run_block(folder.path(), "postgres: restore into a new database", &changes);
    server.set_database(&restored);
    server.start().await;
    scene.check_restored(&server, &new).await;
    server.stop().await;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    store.administrator().await.execute(AssertSqlSafe(drop)).await.unwrap();
}
