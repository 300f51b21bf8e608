//! Databases that lock tables, end idle sessions, accept no new connections, are migrated under load, or lose
//! their file.

use std::time::{Duration, Instant};

use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{LONG, Server, Store, agent, eventually, is_long, length, recovered};

/// Undoes what the migration adds to the schema of the previous version.
const UNDO_LAST_MIGRATION: &str = "
    DROP INDEX agent_registry_id_bytes;
    ALTER TABLE agent_registry_event DROP COLUMN mark;
    ALTER TABLE agent_registry_state DROP COLUMN mark, DROP COLUMN heartbeat_timeout_seconds;
    DELETE FROM _sqlx_migrations WHERE version = 5";

/// A server migrates in the middle of a transaction of a server of the previous version.
#[tokio::test(flavor = "multi_thread")]
async fn migration_and_previous_version_do_not_deadlock() {
    let store = Store::postgres().await;
    Server::running(&store.url, &[]).await.stop().await;
    store.execute(UNDO_LAST_MIGRATION).await;
    let mut previous = store.connect().await;
    previous.execute("BEGIN; SELECT FROM agent_registry_state FOR UPDATE").await.unwrap();
    let mut server = Server::new(&store.url, &[]);
    let starting = tokio::spawn(async move {
        server.start().await;
        server
    });
    eventually("the migration waits for a lock", async || {
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
                       WHERE datname = current_database() AND NOT granted";
        let mut observer = store.connect().await;
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut observer).await.unwrap() > 0
    })
    .await;
    let written = previous
        .execute(
            "INSERT INTO agent_registry_event (revision, kind, agent_id, at) VALUES (1, 'heard', 'a', now());
             UPDATE agent_registry_state SET revision = 1; COMMIT",
        )
        .await;
    let started = starting.await;
    assert!(written.is_ok() && started.is_ok(), "{written:?}, the new server started: {}", started.is_ok());
}

/// CREATE INDEX takes the same lock.
#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_wait_for_a_locked_table() {
    let store = Store::postgres().await;
    let servers = [Server::running(&store.url, &[]).await, Server::running(&store.url, &[]).await];
    let mut holder = store.connect().await;
    holder.execute("BEGIN; LOCK TABLE agent_registry IN SHARE MODE").await.unwrap();
    let mut requests = JoinSet::new();
    for number in 0..150 {
        let client = servers[0].client();
        requests.spawn(async move {
            let began = Instant::now();
            let answer = client.register(&agent(&format!("agent-{number}"), "work")).await;
            assert!(answer.is_err(), "registered in a locked table");
            began.elapsed()
        });
    }
    // All of them get a response before the lock is released.
    let took = requests.join_all().await.into_iter().max().unwrap();
    println!("registrations on a locked table took {took:.1?} at most");
    assert!(!is_long() || took < Duration::from_secs(10), "{took:?}");
    holder.execute("ROLLBACK").await.unwrap();
    recovered(&servers).await;
}

/// At full length, no request may fail, since the existing sessions keep working.
#[tokio::test(flavor = "multi_thread")]
async fn lost_listener_is_replaced_once_connections_are_allowed_again() {
    let store = Store::postgres().await;
    let servers = [Server::running(&store.url, &[]).await];
    let client = servers[0].client();
    servers[0].patient_client().register(&agent("a", "work")).await.unwrap();
    servers[0].patient_client().heartbeat("a").await.unwrap();
    let mut administrator = store.administrator().await;
    let name = store.url.rsplit('/').next().unwrap();
    allow_connections(&mut administrator, name, false).await;
    let end_listener = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = $1 AND query LIKE '%pg_is_in_recovery%'";
    let ended: i64 = sqlx::query_scalar(end_listener).bind(name).fetch_one(&mut administrator).await.unwrap();
    assert_eq!(ended, 1);
    let mut failures = Vec::new();
    for _ in 0..20 {
        failures.extend(client.heartbeat("a").await.err().map(|error| error.to_string()));
        let updated = client.update_status("a", AgentStatus::Busy).await;
        failures.extend(updated.err().map(|error| error.to_string()));
        sleep(Duration::from_millis(100)).await;
    }
    println!("{} of 40 requests failed without room for connections", failures.len());
    assert!(!is_long() || failures.is_empty(), "{failures:#?}: {}", servers[0].log());
    allow_connections(&mut administrator, name, true).await;
    recovered(&servers).await;
}

async fn allow_connections(administrator: &mut PgConnection, database: &str, is_allowed: bool) {
    let sql = format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS {is_allowed}");
    administrator.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// The `idle_session_timeout` of a database or role is meant for forgotten interactive sessions.
#[tokio::test(flavor = "multi_thread")]
async fn database_does_not_end_idle_sessions_of_a_server() {
    let store = Store::postgres().await;
    let name = store.url.rsplit('/').next().unwrap();
    let sql = format!("ALTER DATABASE {name} SET idle_session_timeout = '1s'");
    let mut administrator = store.administrator().await;
    administrator.execute(AssertSqlSafe(sql)).await.unwrap();
    let server = Server::running(&store.url, &["--heartbeat-timeout", "3s", "--sweep-interval", "1h"]).await;
    let client = server.patient_client();
    let mut ended = async || {
        let query = "SELECT sessions_fatal FROM pg_stat_database WHERE datname = $1";
        sqlx::query_scalar::<_, i64>(query).bind(name).fetch_one(&mut administrator).await.unwrap()
    };
    for round in 0..3 {
        let id = format!("dead-{round}");
        client.register(&agent(&id, "work")).await.unwrap();
        client.heartbeat(&id).await.unwrap();
        let before = ended().await;
        // The sessions are idle until then.
        eventually("it is offline", async || {
            client.get_agent(&id).await.unwrap().status == AgentStatus::Offline
        })
        .await;
        assert_eq!(ended().await, before, "sessions were ended: {}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_recovers_from_a_lock_held_by_another_program_on_sqlite() {
    let store = Store::sqlite();
    let mut server = Server::running(&store.url, &[]).await;
    let mut other = SqliteConnection::connect(&store.url).await.unwrap();
    for begin in ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"] {
        other.execute(begin).await.unwrap();
        let traffic = traffic(&server.client());
        sleep(Duration::from_secs(length(10, 2))).await;
        let began = Instant::now();
        server.client().list_agents(ListQuery::all()).await.unwrap();
        let read = began.elapsed();
        other.execute("ROLLBACK").await.unwrap();
        let client = server.client();
        let registers = async || client.register(&agent("after", "work")).await.is_ok();
        let recovered = eventually("the server is well again", registers).await;
        println!("{begin}: a list took {read:.1?}, well again after {recovered:.1?}");
        assert!(!is_long() || read.max(recovered) < Duration::from_secs(10), "{read:?}, {recovered:?}");
        drop(traffic);
    }
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let _traffic = traffic(&server.client());
    eventually("/health says so", async || server.client().get_server_health().await.is_err()).await;
    let took = server.stop_within(LONG).await;
    println!("ended {took:.1?} after SIGTERM, while the file was locked");
    assert!(!is_long() || took < Duration::from_secs(10), "{took:?}");
    other.execute("ROLLBACK").await.unwrap();
}

/// Registers agents and sends heartbeats until the result is dropped.
fn traffic(client: &RegistryClient) -> JoinSet<()> {
    let mut traffic = JoinSet::new();
    for number in 0..20 {
        let client = client.clone();
        traffic.spawn(async move {
            let id = format!("agent-{number}");
            for round in 0_u32.. {
                let _ = client.register(&agent(&id, &format!("work-{}", round % 3))).await;
                let _ = client.heartbeat(&id).await;
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
    traffic
}

/// Writes to a deleted file would be lost with the next restart.
#[tokio::test(flavor = "multi_thread")]
async fn server_rejects_writes_once_its_sqlite_file_was_replaced() {
    let store = Store::sqlite();
    let file = store.url.trim_start_matches("sqlite://").to_owned();
    let mut server = Server::running(&store.url, &[]).await;
    server.patient_client().register(&agent("before", "work")).await.unwrap();
    server.stop().await;
    std::fs::copy(&file, format!("{file}.backup")).unwrap();
    server.start().await;
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{file}{end}"));
    }
    std::fs::rename(format!("{file}.backup"), &file).unwrap();
    let registered = server.client().register(&agent("after", "work")).await;
    assert!(registered.is_err(), "{registered:?}");
    eventually("/health says so", async || server.client().get_server_health().await.is_err()).await;
    server.stop().await;
    server.start().await;
    server.patient_client().register(&agent("after", "work")).await.unwrap();
    server.stop().await;
    server.start().await;
    for id in ["before", "after"] {
        server.client().get_agent(id).await.unwrap();
    }
}
