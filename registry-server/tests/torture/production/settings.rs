//! Settings that an operator gave to the role or the database.

use std::time::Duration;

use registry_sdk::contract::AgentStatus;
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;

use crate::support::{Cluster, Server, agent, equal_the_database, eventually, follow_each_other, length};

/// Each of these would break a session without its own settings.
const SETTINGS: &str = "
    CREATE ROLE picky LOGIN;
    CREATE SCHEMA registry AUTHORIZATION picky;
    ALTER ROLE picky SET search_path = registry;
    ALTER ROLE picky SET statement_timeout = '500ms';
    ALTER ROLE picky SET lock_timeout = '1ms';
    ALTER ROLE picky SET idle_in_transaction_session_timeout = '1ms';
    ALTER ROLE picky SET default_transaction_isolation = 'serializable';
    ALTER ROLE picky SET default_transaction_deferrable = on;
    ALTER ROLE picky SET timezone = 'Asia/Kathmandu';
    ALTER ROLE picky SET datestyle = 'SQL, DMY';
    ALTER ROLE picky SET intervalstyle = 'sql_standard';
    ALTER ROLE picky SET bytea_output = 'escape';
    ALTER ROLE picky SET plan_cache_mode = 'force_custom_plan'";

/// Slower than the role's statement timeout.
const SLOW_INSERTS: &str = "
    CREATE FUNCTION registry.dawdle() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_sleep(0.7); RETURN NEW; END$$;
    CREATE TRIGGER dawdle BEFORE INSERT ON registry.agent_registry
        FOR EACH ROW WHEN (NEW.agent_id = 'slow') EXECUTE FUNCTION registry.dawdle()";

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_role_have_no_effect() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let mut administrator = cluster.connect().await.unwrap();
    administrator.execute(SETTINGS).await.unwrap();
    let url = cluster.url().replace("registry@", "picky@");
    let flags = ["--heartbeat-timeout", length("6s", "1h"), "--sweep-interval", "500ms"];
    let servers = [Server::running(&url, &flags).await, Server::running(&url, &flags).await];
    administrator.execute(SLOW_INSERTS).await.unwrap();

    let client = servers[0].patient_client();
    let registered = std::time::Instant::now();
    client.register(&agent("slow", "work")).await.unwrap();
    assert!(registered.elapsed() > Duration::from_millis(700), "the insertion was not slow");
    administrator.execute("DROP TRIGGER dawdle ON registry.agent_registry").await.unwrap();
    // Concurrently on both servers, since serializable transactions would make each other fail.
    let mut clients = JoinSet::new();
    for server in &servers {
        let client = server.patient_client();
        clients.spawn(async move {
            for round in 0..30 {
                client.heartbeat("slow").await.unwrap();
                let status = if round % 2 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
                client.update_status("slow", status).await.unwrap();
            }
        });
    }
    clients.join_all().await;
    for server in &servers {
        assert!(!server.log().contains("could not serialize"), "{}", server.log());
    }
    follow_each_other(&servers).await;
    let mut as_role = PgConnection::connect(&url).await.unwrap();
    equal_the_database(&servers, &mut as_role).await;
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let strays: i64 = sqlx::query_scalar(tables).fetch_one(&mut administrator).await.unwrap();
    assert_eq!(strays, 0, "tables outside of the role's schema");
    client.deregister("slow").await.unwrap();
    let gone = async || servers[1].client().get_agent("slow").await.is_err();
    eventually("the other server has removed it", gone).await;
}
