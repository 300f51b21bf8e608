//! A store full of agents that have been offline for a long time.

use crate::support::{Server, Store, eventually};

/// 100 agents that have been offline for a week, 101 for a day less, and 101 that are not offline.
macro_rules! insert_agents {
    ($now:literal, $week_ago:literal, $six_days_ago:literal) => {
        concat!(
            "WITH RECURSIVE number (n) AS (
                 SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 101
             ), agent (id, status, since) AS (
                 SELECT 'forgotten-' || n, 'offline', ", $week_ago, " FROM number WHERE n <= 100
                 UNION ALL SELECT 'offline-' || n, 'offline', ", $six_days_ago, " FROM number
                 UNION ALL SELECT 'active-' || n, 'active', NULL FROM number
             )
             INSERT INTO agent_registry
                 (agent_id, agent_name, base_url, status, last_heartbeat, registered_at, offline_since, revision)
             SELECT id, 'inserted', 'http://agent.example:1', status, ", $now, ", ", $now, ", since, 0 FROM agent"
        )
    };
}

const ONE_MORE: &str = "UPDATE agent_registry
    SET offline_since = (SELECT offline_since FROM agent_registry WHERE agent_id = 'forgotten-1')
    WHERE agent_id = 'offline-1'";

#[tokio::test(flavor = "multi_thread")]
async fn remove_after_is_suggested_on_sqlite() {
    flag_is_named(&Store::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_after_is_suggested_on_postgres() {
    let store = Store::postgres().await;
    flag_is_named(&store).await;
}

async fn flag_is_named(store: &Store) {
    let mut server = Server::running(&store.url, &[]).await;
    server.stop().await;
    let insert = if store.is_postgres() {
        insert_agents!("now()", "now() - interval '7 days 1 minute'", "now() - interval '6 days'")
    } else {
        insert_agents!(
            "unixepoch() * 1000",
            "unixepoch() * 1000 - 604860000",
            "unixepoch() * 1000 - 518400000"
        )
    };
    store.execute(insert).await;
    let warnings = |server: &Server| {
        let log = server.log();
        log.lines().filter(|line| line.contains("--remove-after")).map(str::to_owned).collect::<Vec<_>>()
    };
    server.start().await;
    assert_eq!(warnings(&server), Vec::<String>::new());
    server.stop().await;
    store.execute(ONE_MORE).await;
    server.start().await;
    let warned = warnings(&server);
    assert!(
        warned.len() == 1 && warned[0].contains("WARN") && warned[0].contains("agents=101"),
        "{warned:?}"
    );
    server.stop().await;

    // The flag removes them, although no server has been running for a week.
    let flags = ["--remove-after", "7d", "--heartbeat-timeout", "1s", "--sweep-interval", "100ms"];
    let with_flag = Server::running(&store.url, &flags).await;
    let client = with_flag.patient_client();
    eventually("all are removed", async || client.get_stats().await.unwrap().total_agents == 201).await;
    assert!(!with_flag.log().contains("are kept"), "{}", with_flag.log());
}
