//! Outages of the database.

use std::time::Duration;

use registry_sdk::Error;
use registry_sdk::contract::{AgentStatus, STALE_HEADER};
use registry_sdk::testing::Fault;
use tokio::time::Instant;

use crate::support::{
    Database, agent, client, eventually, impatient_client, on_postgres, proxy_before, status_of,
};

on_postgres!(
    reads_work_and_writes_are_rejected_during_an_outage,
    no_agent_goes_offline_within_half_a_timeout_after_a_long_outage,
    closed_database_connections_fail_no_request,
);

async fn reads_work_and_writes_are_rejected_during_an_outage(database: Database) {
    let proxy = proxy_before(&database).await;
    let server = database.through(&proxy).start().await;
    let client = impatient_client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let stale = async || {
        let response = reqwest::get(format!("{}/agents/a", server.url())).await.unwrap();
        response.headers().get(STALE_HEADER).map(|value| value.to_str().unwrap().parse::<u64>().unwrap())
    };
    assert_eq!(stale().await, None);

    proxy.set(Fault::Refuse);
    eventually("the server is unhealthy", async || client.get_server_health().await.is_err()).await;
    for error in [
        client.heartbeat("a").await.map(|_| ()).unwrap_err(),
        client.register(&agent("a", "rest")).await.map(|_| ()).unwrap_err(),
        client.update_status("a", AgentStatus::Busy).await.map(|_| ()).unwrap_err(),
        client.deregister("a").await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unavailable { status: 503, .. }), "{error}");
        assert!(error.retry_after().is_some() && error.is_retryable());
    }
    assert!(stale().await.is_some());
    assert_eq!(status_of(&client, "a").await, AgentStatus::Active);
    assert!(client.check_health("a").await.unwrap().is_healthy());
    assert_eq!(client.search_capabilities("work").await.unwrap().len(), 1);
    assert_eq!(client.get_stats().await.unwrap().active_agents, 1);

    proxy.set(Fault::None);
    eventually("the server is healthy", async || client.get_server_health().await.is_ok()).await;
    assert_eq!(stale().await, None);
    client.heartbeat("a").await.unwrap();
    // Rejected writes have changed nothing.
    let record = client.get_agent("a").await.unwrap();
    assert_eq!((record.status, record.capabilities[0].name.as_str()), (AgentStatus::Active, "work"));
    server.shutdown().await;
}

async fn no_agent_goes_offline_within_half_a_timeout_after_a_long_outage(database: Database) {
    const TIMEOUT: Duration = Duration::from_millis(800);
    let proxy = proxy_before(&database).await;
    let server = database.through(&proxy).start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = impatient_client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    // On a busy machine the deadline may pass before the outage is noticed: then the next outage counts.
    let notices_in_time = async || {
        proxy.set(Fault::None);
        client.heartbeat("a").await.is_ok() && {
            proxy.set(Fault::Refuse);
            eventually("the server is unhealthy", async || client.get_server_health().await.is_err()).await;
            client.check_health("a").await.unwrap().is_healthy()
        }
    };
    eventually("the outage is noticed before the deadline", notices_in_time).await;
    let silence = async || client.check_health("a").await.unwrap().since_heartbeat.unwrap();
    // Reads from memory say healthy for twice the timeout.
    while silence().await < 2 * TIMEOUT {
        assert!(client.check_health("a").await.unwrap().is_healthy());
    }
    let mended = Instant::now();
    proxy.set(Fault::None);
    while status_of(&client, "a").await == AgentStatus::Active {
        tokio::task::yield_now().await;
    }
    assert!(mended.elapsed() >= TIMEOUT / 2, "marked offline after {:?}", mended.elapsed());
    server.shutdown().await;
}

async fn closed_database_connections_fail_no_request(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut connection = database.connect().await;
    for round in 0..5 {
        let close = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::Executor::execute(&mut connection, close).await.unwrap();
        client.heartbeat("a").await.unwrap();
        client.register(&agent("a", &format!("work-{round}"))).await.unwrap();
    }
    server.shutdown().await;
}
