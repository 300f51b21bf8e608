//! An export while the registry's database is away.

use registry_sdk::testing::{Fault, FaultProxy};
use registry_server::{Config, Server};

use crate::support::{Database, agent, client, eventually, run};

#[tokio::test(flavor = "multi_thread")]
async fn an_export_from_memory_says_so() {
    let database = Database::postgres();
    let (address, url) = database.split();
    let proxy = FaultProxy::start(address).await;
    let database_url = url(&proxy.address().to_string());
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), database_url, ..Config::default() };
    let server = Server::bind(config).await.unwrap();
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
