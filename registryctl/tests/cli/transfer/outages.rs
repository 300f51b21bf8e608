//! Export while the registry's database is down.

use registry_sdk::testing::{Fault, FaultProxy};

use super::support::{Database, agent, client, eventually, run, serve};

#[tokio::test(flavor = "multi_thread")]
async fn export_from_memory_says_so() {
    let database = Database::postgres().await;
    let proxy = FaultProxy::start(database.address()).await;
    let server = serve(&database.at(proxy.address())).await;
    client(&server.url()).register(&agent("a")).await.unwrap();
    assert_eq!(run(&server.url(), &["export"]).reasons, "");
    proxy.set(Fault::Refuse);
    eventually("the server notices", async || {
        let exported = run(&server.url(), &["export"]);
        assert!(
            exported.code == Some(0) && exported.said.contains("\"agent_id\":\"a\""),
            "{}",
            exported.said
        );
        exported.reasons.contains("the registry cannot reach its database")
    })
    .await;
    proxy.set(Fault::None);
    server.shutdown().await;
}
