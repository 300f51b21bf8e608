//! A database that is read-only for a while, as during a failover.

use std::time::{Duration, Instant};

use registry_sdk::Error;
use registry_sdk::contract::AgentStatus;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::support::{
    Cluster, Server, Store, Witnesses, agent, equal_the_database, eventually, follow_each_other, is_long,
    length, recovered,
};

/// At full length, the database is read-only for several timeouts.
fn timeout() -> Duration {
    Duration::from_secs(length(6, 3_600))
}

fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("6s", "1h"), "--sweep-interval", "500ms"]
}

const WITNESSES: usize = 20;

/// New sessions are read-only, and those opened meanwhile stay read-only.
#[tokio::test(flavor = "multi_thread")]
async fn servers_recover_from_read_only_sessions() {
    let store = Store::postgres().await;
    let name = url::Url::parse(&store.url).unwrap().path().trim_start_matches('/').to_owned();
    // Connected to another database, which stays writable.
    let mut administrator = store.administrator().await;
    let (set, reset) = (
        format!("ALTER DATABASE {name} SET default_transaction_read_only = on"),
        format!("ALTER DATABASE {name} RESET default_transaction_read_only"),
    );
    let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    let servers = start(&store.url).await;
    let begin: &[&str] = &[&set, &cut];
    outlast(&servers, &mut administrator, begin, &[&reset]).await;
    equal_the_database(&servers, &mut store.connect().await).await;
    end(servers).await;
}

/// All sessions become read-only, and then writable again.
#[tokio::test(flavor = "multi_thread")]
async fn servers_recover_from_a_read_only_database() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let mut administrator = cluster.connect().await.unwrap();
    administrator.execute("SET default_transaction_read_only = off").await.unwrap();
    let servers = start(&cluster.url()).await;
    let begin = ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"];
    let end_it = ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"];
    outlast(&servers, &mut administrator, &begin, &end_it).await;
    equal_the_database(&servers, &mut administrator).await;
    end(servers).await;
}

async fn start(database_url: &str) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(database_url, &flags()).await);
    }
    servers[0].patient_client().register(&agent("changing", "change")).await.unwrap();
    servers
}

async fn end(servers: Vec<Server>) {
    for mut server in servers {
        server.stop_within(Duration::from_secs(length(10, 40))).await;
    }
}

/// Makes the database read-only and writable again with the given statements, and checks the servers'
/// responses meanwhile.
async fn outlast(servers: &[Server], administrator: &mut PgConnection, begin: &[&str], end: &[&str]) {
    let witnesses = Witnesses::start(servers, WITNESSES, timeout()).await;
    for _ in 0..length(3, 1) {
        for statement in begin {
            administrator.execute(AssertSqlSafe((*statement).to_owned())).await.unwrap();
        }
        for (place, server) in servers.iter().enumerate() {
            let client = server.client();
            let unhealthy = async || client.get_server_health().await.is_err();
            let noticed = eventually("a server is unhealthy whose database is read-only", unhealthy).await;
            println!("server {place} is unhealthy after {noticed:.2?}");
            assert!(!is_long() || noticed < Duration::from_secs(3), "server {place}: {noticed:?}");
        }
        let until = Instant::now() + Duration::from_secs(length(12, 2));
        while Instant::now() < until {
            for server in servers {
                is_refused_and_read(server).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for statement in end {
            administrator.execute(AssertSqlSafe((*statement).to_owned())).await.unwrap();
        }
        println!("well again {:.2?} after the database was writable", recovered(servers).await);
        let enough = witnesses.answered() + 2 * WITNESSES as u64;
        eventually("heartbeats go on", async || witnesses.answered() >= enough).await;
    }
    witnesses.end().await;
    follow_each_other(servers).await;
}

/// Checks that writes are rejected as retryable, and that reads are answered from memory and marked as stale.
async fn is_refused_and_read(server: &Server) {
    let client = server.client();
    for written in [
        client.update_status("changing", AgentStatus::Busy).await.map(drop),
        client.heartbeat("changing").await.map(drop),
        client.register(&agent("late", "nothing")).await.map(drop),
    ] {
        match written {
            Err(Error::Unavailable { status: 503, retry_after: Some(_), .. }) => {}
            outcome => panic!("a write on a read-only database: {outcome:?}"),
        }
    }
    assert!(client.get_server_health().await.is_err(), "healthy over a read-only database");
    for target in ["agents", "agents/changing", "health/changing", "capabilities/search?q=witness", "stats"] {
        let answer = reqwest::get(format!("{}/{target}", server.url())).await.unwrap();
        assert!(answer.status().is_success(), "{target}: {answer:?}");
        assert!(answer.headers().contains_key("Registry-Stale-Seconds"), "{target}: {answer:?}");
    }
}
