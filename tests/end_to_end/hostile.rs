//! Malicious and misbehaving clients.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::contract::{AgentStatus, Capability};
use registry_sdk::{Error, RetryPolicy, WatchEvent};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Database, agent, client, eventually, impatient_client, on_both_databases};

on_both_databases!(
    text_of_agents_is_never_interpreted,
    deeply_nested_json_is_rejected_or_can_be_read_back,
    body_that_never_arrives_times_out,
    connections_beyond_the_limit_are_rejected,
    event_streams_leave_connections_for_requests,
    slow_readers_get_the_latest_agents,
    rate_limit_only_slows_down_the_client_that_exceeds_it,
    path_traversal_is_rejected,
);

const NASTY: [&str; 7] = [
    "'; DROP TABLE agent_registry; --",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a\r\n\r\nevent: deregistered\r\ndata: {}\r\n\r\n",
    "\u{1b}[31mred\u{1b}[0m\u{7}",
    "\u{202e}backwards\u{2066}",
    "a\"} 1\nagent_registry_evil 1",
    "${jndi:ldap://127.0.0.1/a} {{7*7}} %s%n",
];

async fn text_of_agents_is_never_interpreted(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let mut watch = client.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));
    for (number, text) in NASTY.iter().enumerate() {
        let mut nasty = agent(&format!("a{number}"), "x")
            .metadata(*text, *text)
            .metadata("deep", json!({*text: [*text]}));
        nasty.agent_name = (*text).to_owned();
        nasty.capabilities = vec![Capability::new(*text).description(*text).tag(*text).cost_estimate(*text)];
        let record = client.register(&nasty).await.unwrap();
        assert_eq!((&record.agent_name, &record.metadata), (&nasty.agent_name, &nasty.metadata));
        assert_eq!(record.capabilities, nasty.capabilities);
        let Some(WatchEvent::Registered(told)) = watch.next().await else { panic!("another event") };
        assert_eq!((&told.agent_name, &told.capabilities), (&nasty.agent_name, &nasty.capabilities));
        assert_eq!(client.get_agent(&nasty.agent_id).await.unwrap(), record);
        // A text that is not a valid query is rejected, without other effects.
        let _ = client.search_capabilities(*text).await;
    }
    let metrics = reqwest::get(format!("{}/metrics", server.url())).await.unwrap().text().await.unwrap();
    for line in metrics.lines() {
        let is_ours = line.starts_with('#') || line.starts_with("agent_registry_");
        assert!(is_ours && !line.starts_with("agent_registry_evil"), "{line}");
    }
    server.shutdown().await;
    // The text is unchanged after it was read from the database.
    let server = database.start().await;
    let client = self::client(&server);
    for (number, text) in NASTY.iter().enumerate() {
        assert_eq!(client.get_agent(&format!("a{number}")).await.unwrap().agent_name, *text);
    }
    server.shutdown().await;
}

async fn deeply_nested_json_is_rejected_or_can_be_read_back(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let http = reqwest::Client::new();
    let mut taken = 0;
    for depth in [10, 100, 120, 125, 130, 1_000, 60_000] {
        let nested = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        for body in [
            format!(
                r#"{{"agent_id":"a","agent_name":"A","base_url":"http://a","capabilities":[],"metadata":{{"x":{nested}}}}}"#
            ),
            // In an unknown field.
            format!(
                r#"{{"agent_id":"a","agent_name":"A","base_url":"http://a","capabilities":[],"x":{nested}}}"#
            ),
        ] {
            let request =
                http.post(format!("{}/register", server.url())).header(CONTENT_TYPE, "application/json");
            let status = request.body(body).send().await.unwrap().status().as_u16();
            assert!([200, 400, 422].contains(&status), "{status} at {depth}");
            if status == 200 {
                taken += 1;
                // Also in a list, which adds a level, and in an event.
                client.get_agent("a").await.unwrap();
                client.list_agents(registry_sdk::ListQuery::all()).await.unwrap();
            }
        }
    }
    assert!(taken > 0);
    server.shutdown().await;
}

async fn body_that_never_arrives_times_out(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let mut connection = TcpStream::connect(server.local_addr()).await.unwrap();
    let head = "POST /register HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not come within 10 s"), "{answer}");
    server.shutdown().await;
}

async fn connections_beyond_the_limit_are_rejected(database: Database) {
    let server = database.start_with(|config| config.max_connections = NonZeroUsize::new(3).unwrap()).await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let open = || async { TcpStream::connect(server.local_addr()).await.unwrap() };
    let (first, second) = (open().await, open().await);
    let mut third = open().await;
    third.write_all(b"GET /stats HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    third.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    client.heartbeat("a").await.unwrap();
    drop((first, second));
    let url = format!("{}/stats", server.url());
    eventually("a new connection is accepted", async || {
        reqwest::Client::new().get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
    server.shutdown().await;
}

async fn event_streams_leave_connections_for_requests(database: Database) {
    let server = database.start_with(|config| config.max_connections = NonZeroUsize::new(8).unwrap()).await;
    let open = async || reqwest::get(format!("{}/events", server.url())).await.unwrap();
    let streams = [open().await, open().await, open().await, open().await];
    assert!(streams.iter().all(|stream| stream.status().is_success()));
    let refused = open().await;
    assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
    assert!(refused.text().await.unwrap().contains("too many event streams"));
    client(&server).register(&agent("a", "work")).await.unwrap();
    drop(streams);
    eventually("a new stream is accepted", async || open().await.status().is_success()).await;
    server.shutdown().await;
}

/// Begins to read a page and a search, changes the last agents of both, and reads the rest.
async fn slow_readers_get_the_latest_agents(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // Together longer than the buffers of the sockets.
    let registration = |id: &str, name: &str| {
        let mut work = Capability::new(name).description("€".repeat(1_024));
        work.tags = (0..32).map(|number| format!("{number:02}{}", "€".repeat(62))).collect();
        agent(id, "rest").capability(work)
    };
    let ids: Vec<_> = (100..400).map(|number| format!("a{number}")).collect();
    for id in &ids {
        client.register(&registration(id, "work")).await.unwrap();
    }
    let mut begun = Vec::new();
    for target in ["/agents?limit=300&status=active", "/capabilities/search?q=work&limit=300&status=active"] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut connection = socket.connect(server.local_addr()).await.unwrap();
        // A response in HTTP/1.0 has no chunk lengths.
        connection.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        connection.readable().await.unwrap();
        begun.push(connection);
    }
    // The page ends with the greatest ids, the search with the agents of the earliest heartbeats.
    for (removed, busy, changed) in [("a399", "a398", "a397"), ("a100", "a101", "a102")] {
        client.deregister(removed).await.unwrap();
        client.update_status(busy, AgentStatus::Busy).await.unwrap();
        client.register(&registration(changed, "something")).await.unwrap();
    }
    let mut read = Vec::new();
    for mut connection in begun {
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        let agents: Vec<Value> = serde_json::from_str(body).unwrap();
        read.push(agents);
    }
    let of = |agents: &[Value]| -> Vec<_> {
        let mut ids: Vec<_> =
            agents.iter().map(|agent| agent["agent_id"].as_str().unwrap().to_owned()).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(of(&read[0]), ids[..298]);
    assert_eq!(read[0][297]["capabilities"][1]["name"], "something");
    assert_eq!(of(&read[1]), ids[3..]);
    server.shutdown().await;
}

async fn rate_limit_only_slows_down_the_client_that_exceeds_it(database: Database) {
    let server = database.start_with(|config| config.rate_limit = NonZeroU32::new(5)).await;
    let hasty = impatient_client(&server);
    // A busy machine may need several attempts to send more than five requests in a second.
    let refused = loop {
        let outcomes = join_all((0..20).map(|_| hasty.get_stats())).await;
        if let Some(error) = outcomes.into_iter().find_map(Result::err) {
            break error;
        }
    };
    assert!(matches!(refused, Error::Unavailable { status: 429, .. }), "{refused:?}");
    assert!(refused.is_retryable() && refused.retry_after() == Some(Duration::from_secs(1)), "{refused:?}");
    // Health checks are always answered.
    for _ in 0..20 {
        hasty.get_server_health().await.unwrap();
    }
    let answer = reqwest::get(format!("{}/agents", server.url())).await.unwrap();
    assert!(answer.status() == 200 || answer.headers()[RETRY_AFTER] == "1");
    // A client that honours `Retry-After` succeeds.
    let patient = hasty.with_retry(RetryPolicy::registration());
    patient.register(&agent("a", "work")).await.unwrap();
    server.shutdown().await;
}

async fn path_traversal_is_rejected(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    for target in [
        "//agents",
        "/agents/../stats",
        "/agents/%2e%2e/stats",
        "/docs/../../etc/passwd",
        "/docs/..%2f..%2fetc%2fpasswd",
        "/agents/a/",
        "/AGENTS",
        "/agents;/a",
        "/agents/a%00",
        "/dashboard.js%00.html",
        "/./agents",
    ] {
        // An HTTP client would normalize the path.
        let mut connection = TcpStream::connect(server.local_addr()).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{target}: {answer}");
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap_or_default();
        assert!(body.is_null() || body["status"] == 404, "{answer}");
    }
    server.shutdown().await;
}
