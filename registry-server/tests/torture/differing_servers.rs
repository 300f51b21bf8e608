//! Log lines for operators when servers that share a database differ.

use crate::support::{Server, Store, eventually};

const TIMEOUTS: &str =
    "servers that share this database were started with different --heartbeat-timeout values";
const VERSIONS: &str = "servers that share this database have different versions";

fn lines<'a>(log: &'a str, message: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(message)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn difference_is_logged_once_with_both_values() {
    let store = Store::postgres().await;
    let start = async |timeout| Server::running(&store.url, &["--heartbeat-timeout", timeout]).await;
    let (one, mut two) = (start("1h").await, start("2h").await);
    for (server, own, other) in [(&one, "3600s", "7200s"), (&two, "7200s", "3600s")] {
        eventually("it logs the difference", async || !lines(&server.log(), TIMEOUTS).is_empty()).await;
        let log = server.log();
        let line = lines(&log, TIMEOUTS)[0];
        assert!(line.contains("WARN"), "{line}");
        assert!(line.contains(&format!("own=\"{own}\" others=\"{other}\"")), "{line}");
    }
    // A restart does not change the difference.
    two.kill();
    two.start().await;
    eventually("it logs the difference again", async || lines(&two.log(), TIMEOUTS).len() == 2).await;
    store
        .execute(
            "SELECT pg_notify(
                 'agent_registry_news_' || 'agent_registry_state'::regclass::oid,
                 '{\"from\":7,\"settings\":{\"version\":\"0.0.1\",\"heartbeat_timeout_millis\":3600000}}'
             )",
        )
        .await;
    eventually("it logs the version", async || !lines(&one.log(), VERSIONS).is_empty()).await;
    let log = one.log();
    let line = lines(&log, VERSIONS)[0];
    assert!(line.contains("INFO") && line.contains("others=\"0.0.1\""), "{line}");
    // Everything sent before has arrived by now.
    assert_eq!(lines(&log, TIMEOUTS).len(), 1, "{log}");
    drop((one, two));
}
