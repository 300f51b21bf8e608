//! `GET /events` on the wire, as a client for server-sent events reads it.

use std::time::{Duration, Instant};

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Database, LONG, Registry, agent, client, on_both_databases, on_every_registry};

on_every_registry!(
    stream_resumes_after_the_last_event_id,
    id_of_a_deleted_event_gets_reset,
    stream_begins_with_the_last_events,
    invalid_number_of_last_events_is_rejected,
    empty_last_event_id_is_ignored,
);

/// Tests of features that the mock does not have.
mod lasting {
    use super::*;

    on_both_databases!(
        malformed_id_is_rejected,
        quiet_stream_sends_an_id_at_once,
        last_events_survive_a_restart,
        a_thousand_large_events_are_sent_first,
        slow_reader_is_disconnected_after_a_final_event,
    );
}

/// An open event stream.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(server: &Registry, last_event_id: Option<&str>) -> Self {
        Self::open_with(server, "", last_event_id).await
    }

    async fn open_with(server: &Registry, query: &str, last_event_id: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(format!("{}/events{query}", server.url()));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()[CONTENT_TYPE].as_bytes()),
            (200, b"text/event-stream".as_slice())
        );
        Self { response, text: String::new() }
    }

    /// Returns the lines of the next block, which is an event or only an id.
    async fn block(&mut self) -> Vec<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                return block.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
            }
            let chunk = timeout(LONG, self.response.chunk()).await.expect("the stream continues");
            self.text.push_str(std::str::from_utf8(&chunk.unwrap().expect("the stream continues")).unwrap());
        }
    }

    /// Returns the id, the kind and the data of the next event.
    async fn event(&mut self) -> (String, String, Value) {
        loop {
            let lines = self.block().await;
            let field = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let (Some(kind), Some(data)) = (field("event: "), field("data: ")) {
                return (field("id: ").unwrap_or_default(), kind, serde_json::from_str(&data).unwrap());
            }
        }
    }
}

async fn stream_resumes_after_the_last_event_id(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let mut stream = Stream::open(&server, None).await;
    for id in ["a", "b", "c"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    let (first, kind, record) = stream.event().await;
    assert_eq!((kind.as_str(), &record["agent_id"]), ("registered", &"a".into()));
    let revision = format!("{}-", record["revision"]);
    assert!(first.starts_with(&revision), "an id has the record's revision, and a mark: {first}");
    drop(stream);
    let mut stream = Stream::open(&server, Some(&first)).await;
    assert_eq!(stream.event().await.2["agent_id"], "b");
    assert_eq!(stream.event().await.2["agent_id"], "c");
    client.deregister("a").await.unwrap();
    let (_, kind, record) = stream.event().await;
    assert_eq!(
        (kind.as_str(), &record["agent_id"], &record["status"]),
        ("deregistered", &"a".into(), &"active".into())
    );
    drop(stream);
    server.shutdown().await;
}

/// Reads the past events up to the block with only an id. Returns the kind and the agent of each event, and the last id.
async fn past(stream: &mut Stream) -> (Vec<String>, String) {
    let mut events = Vec::new();
    loop {
        let lines = stream.block().await;
        let field = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let id = field("id: ").expect("each block has an id");
        let Some(data) = field("data: ") else { return (events, id) };
        let record: Value = serde_json::from_str(&data).unwrap();
        let revision = id.split_once('-').unwrap().0;
        assert_eq!(revision, record["revision"].to_string(), "each event has its own id");
        events.push(format!("{} {}", field("event: ").unwrap(), record["agent_id"].as_str().unwrap()));
    }
}

async fn stream_begins_with_the_last_events(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    assert_eq!(past(&mut Stream::open_with(&server, "?last=50", None).await).await.0, Vec::<String>::new());
    for id in ["a", "b"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    client.heartbeat("a").await.unwrap();
    client.update_status("b", AgentStatus::Busy).await.unwrap();
    client.deregister("a").await.unwrap();
    let all = ["registered a", "registered b", "status_changed b", "deregistered a"];
    for (query, count) in
        [("", 0), ("?last=0", 0), ("?last=1", 1), ("?last=3", 3), ("?last=4", 4), ("?last=1000", 4)]
    {
        let (events, _) = past(&mut Stream::open_with(&server, query, None).await).await;
        assert_eq!(events, all[4 - count..], "{query}");
    }
    // Then the stream continues. With an id, it resumes there, whatever number of last events the request has.
    let mut stream = Stream::open_with(&server, "?last=2", None).await;
    let (_, id) = past(&mut stream).await;
    client.register(&agent("c", "work")).await.unwrap();
    assert_eq!(stream.event().await.2["agent_id"], "c");
    drop(stream);
    let (missed, _) = past(&mut Stream::open_with(&server, "?last=4", Some(&id)).await).await;
    assert_eq!(missed, ["registered c"], "with a Last-Event-ID the number is ignored");
    server.shutdown().await;
}

/// Clients that have received no event send an empty id.
async fn empty_last_event_id_is_ignored(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut stream = Stream::open_with(&server, "?last=1", Some("")).await;
    let (_, kind, _) = stream.event().await;
    assert_eq!(kind, "registered", "`last` counts without an id");
    let request = reqwest::Client::new().get(format!("{}/events?last=x", server.url()));
    let answer = request.header("Last-Event-ID", "7-0000000000000000").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 400, "an invalid number is rejected, even with an id");
    server.shutdown().await;
}

async fn invalid_number_of_last_events_is_rejected(database: Database) {
    let server = database.start().await;
    for query in ["last=", "last=-1", "last=1001", "last=1.5", "last=x", "last=1&last=2"] {
        let response = reqwest::get(format!("{}/events?{query}", server.url())).await.unwrap();
        assert_eq!(response.status().as_u16(), 400, "{query}");
        let problem: Value = response.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains("last"), "{query}: {problem}");
    }
    server.shutdown().await;
}

async fn last_events_survive_a_restart(database: Database) {
    let server = database.start().await;
    for id in ["a", "b", "c"] {
        client(&server).register(&agent(id, "work")).await.unwrap();
    }
    let before = past(&mut Stream::open_with(&server, "?last=2", None).await).await;
    server.shutdown().await;
    let server = database.start().await;
    let after = past(&mut Stream::open_with(&server, "?last=2", None).await).await;
    assert_eq!(before.0, ["registered b", "registered c"]);
    assert_eq!(after, before);
    server.shutdown().await;
}

/// More events than the server sends in one piece.
async fn a_thousand_large_events_are_sent_first(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").metadata("text", "x".repeat(10_000))).await.unwrap();
    for status in [AgentStatus::Busy, AgentStatus::Active].into_iter().cycle().take(1_000) {
        client.update_status("a", status).await.unwrap();
    }
    let (events, id) = past(&mut Stream::open_with(&server, "?last=1000", None).await).await;
    assert_eq!(events, ["status_changed a"; 1_000]);
    assert!(id.starts_with("1001-"), "{id}");
    server.shutdown().await;
}

async fn id_of_a_deleted_event_gets_reset(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let id = Stream::open(&server, None).await.block().await[0].strip_prefix("id: ").unwrap().to_owned();
    // An unknown revision, a known revision from another history, and the id of an older server.
    for lost in ["999999-0123456789abcdef", "1-0123456789abcdef", "1"] {
        let (head, kind, data) = Stream::open(&server, Some(lost)).await.event().await;
        assert_eq!((kind.as_str(), &data["revision"], &head), ("reset", &1.into(), &id), "{lost}");
    }
    let mut stream = Stream::open(&server, Some("999999")).await;
    assert_eq!(stream.event().await.1, "reset");
    client(&server).register(&agent("b", "work")).await.unwrap();
    assert_eq!(stream.event().await.2["agent_id"], "b");
    drop(stream);
    server.shutdown().await;
}

async fn malformed_id_is_rejected(database: Database) {
    let server = database.start().await;
    for id in ["x", "-1", "1.5", "1-", "1-x", "99999999999999999999"] {
        let request =
            reqwest::Client::new().get(format!("{}/events", server.url())).header("Last-Event-ID", id);
        assert_eq!(request.send().await.unwrap().status().as_u16(), 400, "{id:?}");
    }
    server.shutdown().await;
}

async fn quiet_stream_sends_an_id_at_once(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let mut stream = Stream::open(&server, None).await;
    let block = stream.block().await;
    assert_eq!(block.len(), 1, "{block:?}");
    let id = block[0].strip_prefix("id: ").unwrap().to_owned();
    drop(stream);
    // The stream can be resumed from that id.
    client(&server).register(&agent("b", "work")).await.unwrap();
    assert_eq!(Stream::open(&server, Some(&id)).await.event().await.2["agent_id"], "b");
    server.shutdown().await;
}

async fn slow_reader_is_disconnected_after_a_final_event(database: Database) {
    let server = database.start().await;
    let mut slow = TcpStream::connect(server.local_addr()).await.unwrap();
    slow.write_all(b"GET /events HTTP/1.1\r\nhost: registry\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut head = [0; 16];
    slow.read_exact(&mut head).await.unwrap();
    // More than the server's and the sockets' buffers hold together: about 140 KB for each of 200 changes.
    let mut big = Registration::new("big", "Big", "http://big:8000");
    for number in 0..128 {
        big = big.capability(Capability::new(format!("c{number}")).description("x".repeat(1_000)));
    }
    let began = Instant::now();
    let client = client(&server);
    client.register(&big).await.unwrap();
    for status in [AgentStatus::Busy, AgentStatus::Active].into_iter().cycle().take(200) {
        client.update_status("big", status).await.unwrap();
    }
    let mut rest = Vec::new();
    timeout(LONG, slow.read_to_end(&mut rest)).await.expect("the stream is closed").unwrap();
    let tail = String::from_utf8_lossy(&rest[rest.len() - 200..]).into_owned();
    // A client that reads nothing for half a minute is disconnected without an event, and a busy machine may take that long.
    if began.elapsed() < Duration::from_secs(30) {
        let overrun = tail.split_once("event: overrun\ndata: {\"revision\": ").expect(&tail).1;
        assert!(!overrun.contains("id:"), "the final event must not move the position of the client");
    }
    server.shutdown().await;
}
