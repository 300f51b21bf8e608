//! Requests that a browser sends for pages of other sites, to a server without tokens.

use reqwest::header::{HOST, ORIGIN};
use reqwest::{Client, Method};

use crate::credentials::File;
use crate::support::{Database, Registry, agent, client, on_both_databases};

on_both_databases!(
    requests_for_a_rebound_host_name_are_rejected,
    changes_by_pages_of_other_sites_are_rejected,
    own_host_names_and_other_programs_are_accepted,
    servers_with_tokens_accept_any_host_name,
    beyond_loopback_any_host_name_is_accepted_and_pages_change_nothing,
);

/// Sends a request with some headers, and returns the status and the body.
async fn send(server: &Registry, method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = Client::new().request(method, format!("{}{path}", server.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn start_with_agent(database: &Database, allowed: &[&str]) -> Registry {
    let allowed: Vec<_> = allowed.iter().copied().map(str::to_owned).collect();
    let server = database.start_with(|config| config.allowed_hosts = allowed).await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    server
}

async fn requests_for_a_rebound_host_name_are_rejected(database: Database) {
    let server = start_with_agent(&database, &[]).await;
    for headers in [
        [(HOST.as_str(), "evil.test"), (ORIGIN.as_str(), "http://evil.test")].as_slice(),
        &[(HOST.as_str(), "evil.test:8009")],
        &[(HOST.as_str(), "127.0.0.1.evil.test")],
    ] {
        for (method, path) in [
            (Method::DELETE, "/agents/a"),
            (Method::POST, "/agents/a/heartbeat"),
            (Method::GET, "/agents"),
            (Method::GET, "/"),
            (Method::GET, "/events"),
        ] {
            let (status, body) = send(&server, method.clone(), path, headers).await;
            assert!(status == 421 && body.contains("--allowed-host"), "{method} {path}: {status} {body}");
        }
    }
    client(&server).get_agent("a").await.unwrap();
    server.shutdown().await;
}

async fn changes_by_pages_of_other_sites_are_rejected(database: Database) {
    let server = start_with_agent(&database, &[]).await;
    let before = client(&server).get_agent("a").await.unwrap();
    for headers in [
        [(ORIGIN.as_str(), "http://evil.test")].as_slice(),
        &[(ORIGIN.as_str(), "https://evil.test:8009")],
        &[(ORIGIN.as_str(), "null")],
        &[(ORIGIN.as_str(), "http://203.0.113.5:18150")],
        &[(ORIGIN.as_str(), "http://[2001:db8::1]")],
        &[(ORIGIN.as_str(), "chrome-extension://abcdef")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "none"), ("sec-fetch-site", "Cross-Site")],
        &[("sec-fetch-site", "cross-site"), (ORIGIN.as_str(), "http://localhost")],
        &[(ORIGIN.as_str(), "http://localhost"), (ORIGIN.as_str(), "http://evil.test")],
    ] {
        for (method, path) in [
            (Method::DELETE, "/agents/a"),
            (Method::POST, "/agents/a/heartbeat"),
            (Method::PUT, "/agents/a/status"),
            (Method::POST, "/register"),
        ] {
            let (status, body) = send(&server, method.clone(), path, headers).await;
            assert!(status == 403 && body.contains("--allowed-host"), "{method} {path}: {status} {body}");
        }
        // Reads are answered: the browser withholds the response from the page.
        assert_eq!(send(&server, Method::GET, "/agents/a", headers).await.0, 200);
    }
    assert_eq!(client(&server).get_agent("a").await.unwrap(), before);
    server.shutdown().await;
}

async fn own_host_names_and_other_programs_are_accepted(database: Database) {
    let server = start_with_agent(&database, &["registry.example.com"]).await;
    for host in [
        "127.0.0.1",
        "127.1:8009",
        "192.168.0.7",
        "[::1]:8009",
        "localhost:8009",
        "registry.localhost",
        "agent-registry:8009",
        "registry.internal",
        "registry.example.com",
    ] {
        let origin = format!("http://{host}");
        for headers in [
            [(HOST.as_str(), host), (ORIGIN.as_str(), &*origin), ("sec-fetch-site", "same-origin")]
                .as_slice(),
            &[(HOST.as_str(), host)],
        ] {
            let (status, body) = send(&server, Method::POST, "/agents/a/heartbeat", headers).await;
            assert_eq!(status, 200, "{host}: {body}");
        }
    }
    // Health checks may use any host name.
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(send(&server, Method::GET, path, &[(HOST.as_str(), "any.example")]).await.0, 200);
    }
    server.shutdown().await;
}

async fn servers_with_tokens_accept_any_host_name(database: Database) {
    let (file, tokens) = File::new(&["scope = \"admin\""]);
    let server = database.start_with(|config| config.tokens_file = Some(file.path.clone())).await;
    let authorization = format!("Bearer {}", tokens[0]);
    let headers = [
        (HOST.as_str(), "registry.example.org"),
        (ORIGIN.as_str(), "https://console.example.org"),
        ("authorization", &*authorization),
    ];
    assert_eq!(send(&server, Method::DELETE, "/agents/a", &headers).await.0, 404);
    server.shutdown().await;
}

async fn beyond_loopback_any_host_name_is_accepted_and_pages_change_nothing(database: Database) {
    let server = database.start_with(|config| config.listen = ([0, 0, 0, 0], 0).into()).await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let host = (HOST.as_str(), "registry.example.org");
    assert_eq!(send(&server, Method::GET, "/agents", &[host]).await.0, 200);
    assert_eq!(send(&server, Method::POST, "/agents/a/heartbeat", &[host]).await.0, 200);
    // Even if the page was loaded from the host name of the request.
    let page = [host, (ORIGIN.as_str(), "http://registry.example.org")];
    assert_eq!(send(&server, Method::DELETE, "/agents/a", &page).await.0, 403);
    let stranger = [(HOST.as_str(), "10.1.2.3"), (ORIGIN.as_str(), "http://203.0.113.5")];
    assert_eq!(send(&server, Method::DELETE, "/agents/a", &stranger).await.0, 403);
    // The server's own page at a public address: an origin with an address cannot be rebound.
    let own = [(HOST.as_str(), "203.0.113.5:8009"), (ORIGIN.as_str(), "http://203.0.113.5:8009")];
    assert_eq!(send(&server, Method::POST, "/agents/a/heartbeat", &own).await.0, 200);
    server.shutdown().await;
}
