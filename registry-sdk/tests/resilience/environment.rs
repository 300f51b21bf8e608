//! Settings from a process's environment: proxies and the system's certificates. Each test runs another one in a separate
//! process, because the environment of a process with threads cannot be changed.

use std::process::Command;

use registry_sdk::{Error, RegistryClient, RetryPolicy};

use crate::support::{ACK, Server};

/// Runs an ignored test of this file with environment variables.
fn run(test: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("environment::{test}"), "--ignored", "--nocapture"]);
    for name in
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy"]
    {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

/// Runs an ignored test whose environment names a proxy. Returns the proxy, which records its requests.
async fn run_beside_a_proxy(test: &'static str, variables: &'static [&'static str]) -> Server {
    let proxy = Server::start(|_, _| ACK).await;
    let url = proxy.url();
    tokio::task::spawn_blocking(move || {
        let variables: Vec<_> = variables.iter().map(|name| (*name, url.as_str())).collect();
        run(test, &variables);
    })
    .await
    .unwrap();
    proxy
}

/// A registry name that does not resolve, so that only a proxy reaches it.
const ELSEWHERE: &str = "http://registry.invalid:8009";

fn client(url: &str) -> RegistryClient {
    RegistryClient::builder(url).retry(RetryPolicy::none()).build().unwrap()
}

#[tokio::test]
async fn loopback_addresses_never_go_through_a_proxy() {
    let proxy = run_beside_a_proxy("reaches_loopback", &["HTTP_PROXY", "ALL_PROXY"]).await;
    assert!(proxy.arrived().is_empty(), "{:?}", proxy.arrived());
}

#[tokio::test]
#[ignore = "run in a process of its own"]
async fn reaches_loopback() {
    let server = Server::start(|_, _| ACK).await;
    let port = server.url().rsplit_once(':').unwrap().1.to_owned();
    for host in ["127.0.0.1", "localhost", "127.1.2.3", "[::ffff:127.0.0.1]"] {
        let client = client(&format!("http://{host}:{port}"));
        // Not every machine has a listener at these addresses. It matters only that the proxy does not respond.
        if let Err(error) = client.heartbeat("a").await {
            assert!(host.starts_with('[') || host == "127.1.2.3", "{host}: {}", error.full_message());
        }
    }
    assert!(server.arrived().len() >= 2);
}

#[tokio::test]
async fn other_addresses_go_through_the_proxy_of_the_environment() {
    let proxy = run_beside_a_proxy("reaches_elsewhere", &["HTTP_PROXY"]).await;
    assert_eq!(proxy.arrived()[0].what, "POST http://registry.invalid:8009/agents/a/heartbeat");
}

#[tokio::test]
#[ignore = "run in a process of its own"]
async fn reaches_elsewhere() {
    client(ELSEWHERE).heartbeat("a").await.unwrap();
}

#[tokio::test]
async fn no_proxy_overrides_the_environment() {
    let proxy = run_beside_a_proxy("uses_no_proxy", &["HTTP_PROXY"]).await;
    assert!(proxy.arrived().is_empty());
}

#[tokio::test]
#[ignore = "run in a process of its own"]
async fn uses_no_proxy() {
    let builder = RegistryClient::builder(ELSEWHERE).retry(RetryPolicy::none()).no_proxy();
    let error = builder.build().unwrap().heartbeat("a").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. } | Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn proxy_that_is_set_is_used_beyond_loopback() {
    let proxy = Server::start(|_, _| ACK).await;
    let registry = Server::start(|_, _| ACK).await;
    let through = |url: &str| {
        let builder = RegistryClient::builder(url).retry(RetryPolicy::none()).proxy(proxy.url());
        builder.build().unwrap()
    };
    through(ELSEWHERE).heartbeat("a").await.unwrap();
    through(&registry.url()).heartbeat("a").await.unwrap();
    assert_eq!((proxy.arrived().len(), registry.arrived().len()), (1, 1));
    for url in ["", "not a url", "ftp://proxy", "http://"] {
        let error = RegistryClient::builder(ELSEWHERE).proxy(url).build().unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains("proxy")), "{url}: {error}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn plain_http_needs_no_system_certificates() {
    let nowhere = [("SSL_CERT_FILE", "/nonexistent/ca.pem"), ("SSL_CERT_DIR", "/nonexistent")];
    run("has_no_certificates", &nowhere);
}

#[cfg(feature = "tls")]
#[tokio::test]
#[ignore = "run in a process of its own"]
async fn has_no_certificates() {
    let server = Server::start(|_, _| ACK).await;
    client(&server.url()).heartbeat("a").await.unwrap();
    // HTTPS needs certificates: those of the system, or additional ones.
    let error = RegistryClient::new("https://registry:8009").unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("certificates")), "{error}");
    let own = RegistryClient::builder("https://registry:8009").root_certificate(AUTHORITY);
    own.build().unwrap();
}

/// The certificate of an authority that was created for this test, valid until 2126.
#[cfg(feature = "tls")]
const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBiDCCAS+gAwIBAgIUTaaxKvEoPKZtP/wKAo1NCUOtHSEwCgYIKoZIzj0EAwIw\n\
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTI2MDEwMjI0WhgPMjEy\n\
NjExMjcwMTAyMjRaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI\n\
zj0CAQYIKoZIzj0DAQcDQgAEJgwlJhyGYSU8wKQcYClp+HbNAKx9xkJPy3nZ0cPo\n\
vjq+6JDfsCZtZjFW9nSQPMqBkVZlgY1Obt4FxR6VS+qWWqNTMFEwHQYDVR0OBBYE\n\
FOcXGMuj0L59THhZKnpbbUiKDjdnMB8GA1UdIwQYMBaAFOcXGMuj0L59THhZKnpb\n\
bUiKDjdnMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgXHvWhaLa\n\
BX8gO6Uyn856gQxwOeoCsWoEZmwV87+sa9MCIHw3ZQcs7jd0sLI083uUts1z7QvP\n\
CoSK5FzfKZ3RycUx\n\
-----END CERTIFICATE-----";

/// The client may have another TLS implementation: it is used unchanged.
#[cfg(not(feature = "tls"))]
#[test]
fn custom_http_client_may_use_tls_without_the_feature() {
    let own = reqwest::Client::new();
    RegistryClient::builder("https://registry:8009").http_client(own).build().unwrap();
}
