//! Migrations beside other users of the tables.

use std::time::{Duration, Instant};

use registry_sdk::contract::AgentStatus;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{
    DatabaseProxy, Effect, Server, Store, agent, eventually, follow_each_other, is_long, length, recovered,
};

/// Makes the next server migrate. Applied again, this migration changes nothing, but locks all agents.
const FORGET_A_MIGRATION: &str = "DELETE FROM _sqlx_migrations WHERE version = 3";

/// `pg_dump` holds the same lock while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn migration_that_waits_for_a_dump_does_not_block_running_servers() {
    let store = Store::postgres().await;
    let running = [Server::running(&store.url, &[]).await, Server::running(&store.url, &[]).await];
    running[0].patient_client().register(&agent("a", "work")).await.unwrap();
    store.execute(FORGET_A_MIGRATION).await;
    let mut dump = store.connect().await;
    dump.execute("SET application_name = 'pg_dump'; BEGIN; LOCK TABLE agent_registry IN ACCESS SHARE MODE")
        .await
        .unwrap();
    let holder: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut dump).await.unwrap();

    let mut migrating = Server::new(&store.url, &[]);
    migrating.spawn();
    eventually("the log says who holds the lock", async || {
        let log = migrating.log();
        log.contains(&holder.to_string()) && log.contains("pg_dump")
    })
    .await;
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    let until = Instant::now() + Duration::from_secs(length(30, 3));
    while Instant::now() < until || answered < 50 {
        let began = Instant::now();
        running[answered % 2].patient_client().heartbeat("a").await.unwrap();
        let status = if answered % 2 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
        running[answered % 2].patient_client().update_status("a", status).await.unwrap();
        slowest = slowest.max(began.elapsed());
        answered += 1;
    }
    println!(
        "{answered} heartbeats and changes while a migration waited, the slowest pair took {slowest:.2?}"
    );
    assert!(!is_long() || slowest < Duration::from_secs(1), "{slowest:?}");
    dump.execute("ROLLBACK").await.unwrap();
    migrating.started().await;
    let [one, other] = running;
    let servers = [one, other, migrating];
    recovered(&servers).await;
    follow_each_other(&servers).await;
}

/// Otherwise, its transaction would keep all agents locked.
#[tokio::test(flavor = "multi_thread")]
async fn migration_with_a_dead_connection_is_restarted() {
    for effect in [Effect::SilentBefore, Effect::SilentAfter] {
        let store = Store::postgres().await;
        let running = [Server::running(&store.url, &[]).await];
        store.execute(FORGET_A_MIGRATION).await;
        let proxy = DatabaseProxy::start(&store.url).await;
        proxy.trap_migration(effect);
        let mut migrating = Server::new(proxy.url(), &[]);
        let began = Instant::now();
        migrating.start().await;
        let took = began.elapsed();
        println!("{effect:?}: migrated after {took:.1?}");
        assert_eq!(proxy.fired(), 1);
        assert!(!is_long() || took < Duration::from_secs(20), "{effect:?}: {took:?}");
        recovered(&running).await;
    }
}

/// The first server migrates, and the others wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_start_together_migrate_once() {
    let store = Store::postgres().await;
    let mut servers: Vec<_> = (0..4).map(|_| Server::new(&store.url, &[])).collect();
    for server in &mut servers {
        server.spawn();
    }
    for server in &mut servers {
        server.started().await;
    }
    let applied = "SELECT count(*), count(DISTINCT version) FROM _sqlx_migrations";
    let mut connection: PgConnection = store.connect().await;
    let (all, versions): (i64, i64) = sqlx::query_as(applied).fetch_one(&mut connection).await.unwrap();
    assert_eq!(all, versions);
    connection.close().await.unwrap();
    follow_each_other(&servers).await;
}
