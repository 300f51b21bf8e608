//! Absolute URLs in responses: derived from the request, or configured.

use registry_sdk::contract::AgentRecord;
use reqwest::header::HOST;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{answer, get, register_three, search, start, start_with};
use crate::path_proxy::PathProxy;
use crate::support::{Database, Registry, on_both_databases};

on_both_databases!(
    urls_have_the_host_of_the_request,
    request_without_a_host_is_rejected,
    urls_work_through_a_proxy_that_strips_a_path,
);

async fn urls_have_the_host_of_the_request(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    for host in ["localhost:8009", "127.0.0.1", "[::1]:80", "registry.internal"] {
        let found = answer(search(&server, "weather", &json!({})).header(HOST, host)).await;
        assert_eq!(found["results"][0]["source"], format!("http://{host}/ard/"));
        assert_eq!(found["results"][0]["url"], format!("http://{host}/agents/forecaster"));
        let manifest = answer(get(&server, "/.well-known/ard.json").header(HOST, host)).await;
        assert_eq!(manifest["entries"][0]["url"], format!("http://{host}/ard/"));
    }
    server.shutdown().await;
}

async fn request_without_a_host_is_rejected(database: Database) {
    let server = start(&database).await;
    let told = ask(&server, "GET /ard/agents HTTP/1.0\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.0 400") && told.contains("INVALID_ARGUMENT"), "{told}");
    assert!(told.contains("send the header Host"), "{told}");
    // The host in the request target takes precedence.
    let target = "GET http://localhost:1/.well-known/ard.json HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let told = ask(&server, target).await;
    assert!(told.contains("\"http://localhost:1/ard/\""), "{told}");
    server.shutdown().await;
}

/// Sends a raw request, and returns the raw response.
async fn ask(server: &Registry, request: &str) -> String {
    let mut connection = TcpStream::connect(server.local_addr()).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).await.unwrap();
    response
}

async fn urls_work_through_a_proxy_that_strips_a_path(database: Database) {
    // The proxy needs the server's address, and the server the proxy's.
    let first = start(&database).await;
    register_three(&first).await;
    let address = crate::support::lasting_address();
    let proxy = PathProxy::start(format!("http://{address}")).await;
    first.shutdown().await;
    let public_url = proxy.url();
    let server = start_with(&database, |config| {
        config.listen = address.into();
        config.public_url = Some(public_url);
    })
    .await;
    let manifest: serde_json::Value =
        answer(reqwest::Client::new().get(format!("{}/.well-known/ard.json", proxy.url()))).await;
    let ard = manifest["entries"][0]["url"].as_str().unwrap();
    assert_eq!(ard, format!("{}/ard/", proxy.url()));
    let request = reqwest::Client::new().post(format!("{ard}search"));
    let found = answer(request.json(&json!({"query": {"text": "weather"}}))).await;
    let best = &found["results"][0];
    assert_eq!(best["source"], ard);
    let path = format!("{ard}agents/{}", best["identifier"].as_str().unwrap());
    assert_eq!(answer(reqwest::Client::new().get(path)).await["url"], best["url"]);
    let record = reqwest::get(best["url"].as_str().unwrap()).await.unwrap();
    assert_eq!(record.json::<AgentRecord>().await.unwrap().agent_id, "forecaster");
    assert_eq!(proxy.strays(), Vec::<String>::new());
    server.shutdown().await;
}
