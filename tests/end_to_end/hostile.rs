//! Clients that mean harm, or do it.

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
    what_an_agent_says_stays_text,
    what_is_nested_deeply_is_refused_or_can_be_read_back,
    a_body_that_does_not_come_is_not_waited_for,
    connections_too_many_are_refused_and_heartbeats_on_the_others_go_on,
    event_streams_leave_connections_to_requests,
    slow_readers_get_agents_as_they_are_when_they_are_sent,
    who_sends_too_much_is_slowed_down_and_nobody_else,
    tricks_with_paths_lead_nowhere,
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

async fn what_an_agent_says_stays_text(database: Database) {
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
        // What it cannot be searched for it is refused as, and nothing worse.
        let _ = client.search_capabilities(*text).await;
    }
    let metrics = reqwest::get(format!("{}/metrics", server.url())).await.unwrap().text().await.unwrap();
    for line in metrics.lines() {
        let is_ours = line.starts_with('#') || line.starts_with("agent_registry_");
        assert!(is_ours && !line.starts_with("agent_registry_evil"), "{line}");
    }
    server.shutdown().await;
    // And it is as it was when it is read from the database.
    let server = database.start().await;
    let client = self::client(&server);
    for (number, text) in NASTY.iter().enumerate() {
        assert_eq!(client.get_agent(&format!("a{number}")).await.unwrap().agent_name, *text);
    }
    server.shutdown().await;
}

async fn what_is_nested_deeply_is_refused_or_can_be_read_back(database: Database) {
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
            // In a field that nobody knows.
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
                // Also inside of a list, which is one level more, and of an event.
                client.get_agent("a").await.unwrap();
                client.list_agents(registry_sdk::ListQuery::all()).await.unwrap();
            }
        }
    }
    assert!(taken > 0);
    server.shutdown().await;
}

async fn a_body_that_does_not_come_is_not_waited_for(database: Database) {
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

async fn connections_too_many_are_refused_and_heartbeats_on_the_others_go_on(database: Database) {
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
    eventually("there is room again", async || {
        reqwest::Client::new().get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
    server.shutdown().await;
}

async fn event_streams_leave_connections_to_requests(database: Database) {
    let server = database.start_with(|config| config.max_connections = NonZeroUsize::new(8).unwrap()).await;
    let open = async || reqwest::get(format!("{}/events", server.url())).await.unwrap();
    let streams = [open().await, open().await, open().await, open().await];
    assert!(streams.iter().all(|stream| stream.status().is_success()));
    let refused = open().await;
    assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
    assert!(refused.text().await.unwrap().contains("too many event streams"));
    client(&server).register(&agent("a", "work")).await.unwrap();
    drop(streams);
    eventually("a stream has a place again", async || open().await.status().is_success()).await;
    server.shutdown().await;
}

/// A page and a search are begun, then the last agents of both change, then the rest is read.
async fn slow_readers_get_agents_as_they_are_when_they_are_sent(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // Longer together than what the system takes before it is read.
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
        // An answer in HTTP/1.0 comes without the lengths of its chunks.
        connection.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        connection.readable().await.unwrap();
        begun.push(connection);
    }
    // Last in the page are the greatest ids, last in the search those that were heard of first.
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

async fn who_sends_too_much_is_slowed_down_and_nobody_else(database: Database) {
    let server = database.start_with(|config| config.rate_limit = NonZeroU32::new(5)).await;
    let hasty = impatient_client(&server);
    // Until the machine is quick enough for more than five a second.
    let refused = loop {
        let outcomes = join_all((0..20).map(|_| hasty.get_stats())).await;
        if let Some(error) = outcomes.into_iter().find_map(Result::err) {
            break error;
        }
    };
    assert!(matches!(refused, Error::Unavailable { status: 429, .. }), "{refused:?}");
    assert!(refused.is_retryable() && refused.retry_after() == Some(Duration::from_secs(1)), "{refused:?}");
    // Whoever watches over the server is answered all the same.
    for _ in 0..20 {
        hasty.get_server_health().await.unwrap();
    }
    let answer = reqwest::get(format!("{}/agents", server.url())).await.unwrap();
    assert!(answer.status() == 200 || answer.headers()[RETRY_AFTER] == "1");
    // Who waits as it is told comes through.
    let patient = hasty.with_retry(RetryPolicy::registration());
    patient.register(&agent("a", "work")).await.unwrap();
    server.shutdown().await;
}

async fn tricks_with_paths_lead_nowhere(database: Database) {
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
        // A client would tidy the path before it sends it.
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
