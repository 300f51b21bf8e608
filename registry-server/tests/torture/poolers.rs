//! A pooler between servers and PostgreSQL: `PgBouncer` in session mode, with its default settings.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, WatchEvent};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use crate::support::{
    Server, Store, agent, equal_the_database, eventually, follow_each_other, free_port, installed, is_root,
    length, recovered, start_error, within,
};

const FLAGS: [&str; 4] = ["--heartbeat-timeout", "1h", "--sweep-interval", "500ms"];

#[tokio::test(flavor = "multi_thread")]
async fn servers_work_through_a_pooler_in_session_mode() {
    let store = Store::postgres().await;
    let Some(mut pooler) = PgBouncer::start(&store.url, "session").await else { return };
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(&pooler.url, &FLAGS).await);
    }
    let (client, other) = (servers[0].client(), servers[1].client());
    let mut watch = other.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.is_empty()));

    client.register(&agent("a", "live")).await.unwrap();
    match watch.next().await {
        Some(WatchEvent::Registered(record)) => assert_eq!(record.agent_id, "a"),
        event => panic!("{event:?}"),
    }
    for _ in 0..20 {
        client.heartbeat("a").await.unwrap();
        other.heartbeat("a").await.unwrap();
    }
    other.update_status("a", AgentStatus::Busy).await.unwrap();
    match watch.next().await {
        Some(WatchEvent::StatusChanged(record)) => assert_eq!(record.status, AgentStatus::Busy),
        event => panic!("{event:?}"),
    }
    let found = other.search_capabilities("live").await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    follow_each_other(&servers).await;

    // The pooler hands released sessions to the next client, without any settings of the previous one.
    servers[0].stop_within(Duration::from_secs(length(10, 40))).await;
    let mut next = pooler.connect().await.unwrap();
    let setting: String =
        sqlx::query_scalar("SHOW idle_in_transaction_session_timeout").fetch_one(&mut next).await.unwrap();
    assert_eq!(setting, "0", "left behind by a server");
    next.close().await.unwrap();
    servers[0].start().await;

    // The pooler can be restarted.
    pooler.end();
    for server in &servers {
        let client = server.client();
        eventually("a server is unhealthy", async || client.get_server_health().await.is_err()).await;
        assert!(!client.list_agents(ListQuery::all()).await.unwrap().agents.is_empty());
    }
    pooler.begin().await;
    println!("well again {:.2?} after PgBouncer was started", recovered(&servers).await);
    client.deregister("a").await.unwrap();
    equal_the_database(&servers, &mut store.connect().await).await;
    for server in &mut servers {
        server.stop_within(Duration::from_secs(length(10, 40))).await;
    }
}

/// Without sessions, a server would miss changes, and its settings would apply to others.
#[tokio::test(flavor = "multi_thread")]
async fn poolers_without_sessions_are_rejected_at_startup() {
    let store = Store::postgres().await;
    for mode in ["transaction", "statement"] {
        let Some(pooler) = PgBouncer::start(&store.url, mode).await else { return };
        let error = start_error(&pooler.url, &[]).await;
        assert!(error.contains("pool_mode = session"), "{mode}: {error}");
    }
}

/// A separate `PgBouncer`, killed on drop.
struct PgBouncer {
    program: &'static str,
    /// URL of the database through the pooler.
    url: String,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl PgBouncer {
    /// Starts a pooler. Returns `None` if it is not installed.
    async fn start(database_url: &str, pool_mode: &str) -> Option<Self> {
        let program = installed(["pgbouncer", "/usr/sbin/pgbouncer"], "--version")?;
        let mut url = url::Url::parse(database_url).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (host, port) = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5_432));
        let own_port = free_port();
        let users = folder.path().join("users.txt");
        let password = url.password().unwrap_or_default();
        std::fs::write(&users, format!("\"{}\" \"{password}\"\n", url.username())).unwrap();
        let mut file = std::fs::File::create(folder.path().join("pgbouncer.ini")).unwrap();
        // Only the address, the users and the mode are set. Everything else is the default.
        write!(
            file,
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own_port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {pool_mode}\n",
            users.display()
        )
        .unwrap();
        if is_root() {
            // The pooler refuses to run as root, and its user must be able to read the files.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(folder.path(), mode).unwrap();
        }
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(own_port)).unwrap();
        let mut pooler = Self { program, url: url.into(), folder, process: None };
        pooler.begin().await;
        Some(pooler)
    }

    /// Starts or restarts the pooler, and waits until it passes connections.
    async fn begin(&mut self) {
        let program = self.program;
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", program]);
            command
        } else {
            Command::new(program)
        };
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        command.arg("-q").arg(self.folder.path().join("pgbouncer.ini")).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let passes = async || match self.connect().await {
            Ok(connection) => connection.close().await.is_ok(),
            Err(_) => false,
        };
        within(Duration::from_secs(60), || format!("PgBouncer passes connections: {}", log()), passes).await;
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        // PgBouncer rejects this parameter in the startup message.
        let options = PgConnectOptions::from_str(&self.url).unwrap().extra_float_digits(None);
        PgConnection::connect_with(&options).await
    }

    /// Ends the pooler at once.
    fn end(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // `runuser` forwards the signal, and waits.
        let _ = Command::new("kill").arg(process.id().to_string()).status();
        let _ = process.wait();
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.end();
    }
}
