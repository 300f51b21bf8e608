//! Reconciliation of memory with rows edited with SQL, and its silence if there are no edits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use registry_sdk::contract::{AgentStatus, Capability, ProbeMode, Registration, UnhealthyReason};
use registry_sdk::{ListQuery, RegistryClient};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Server, Store, agent, eventually, length, on_both};

on_both!(log_is_quiet_about_a_deleted_row);
on_both!(untouched_rows_cause_no_event);

/// A text that the sweeper's message contains.
const EXPIRED: &str = "offline";

async fn log_is_quiet_about_a_deleted_row(store: Store) {
    let flags = ["--heartbeat-timeout", "700ms", "--sweep-interval", "50ms"];
    let server = Server::running(&store.url, &flags).await;
    let client = server.patient_client();
    client.register(&agent("deleted", "work")).await.unwrap();
    store.execute("DELETE FROM agent_registry WHERE agent_id = 'deleted'").await;
    // Each of these agents takes many sweeps to miss its deadline. During the first, the deleted agent's
    // deadline passes as well.
    let others = ["a", "b", "c"];
    for id in others {
        client.register(&agent(id, "work")).await.unwrap();
        eventually("it is marked offline", async || store.has_missed_deadline(id).await).await;
    }
    let log = server.log();
    let lines = log.lines().filter(|line| line.contains(EXPIRED)).count();
    assert!(lines <= others.len() + 1, "{lines} lines say {EXPIRED:?}:\n{log}");
    drop(server);
}

/// Registers agents of many kinds, whose rows differ from the registration wherever a database, JSON or a
/// float might cause it.
async fn untouched_rows_cause_no_event(store: Store) {
    // Agents without a longer interval miss their deadline.
    let flags = [
        "--heartbeat-timeout",
        "2s",
        "--sweep-interval",
        "200ms",
        "--probe-interval",
        "500ms",
        "--probe-timeout",
        "60s",
        "--probe-allow",
        "127.0.0.1/32",
    ];
    let mut servers = vec![Server::running(&store.url, &flags).await];
    if store.is_postgres() {
        servers.push(Server::running(&store.url, &flags).await);
    }
    let client = servers[0].patient_client();
    let well = HealthyAgent::start().await;
    let kinds = kinds(&well.url);
    for registration in &kinds {
        client.register(registration).await.unwrap();
    }
    client.update_status("busy-later", AgentStatus::Busy).await.unwrap();
    client.update_status("offline-later", AgentStatus::Offline).await.unwrap();
    for id in ["silent", "silent-busy", "interval-of-a-tenth"] {
        eventually("it has missed its deadline", async || store.has_missed_deadline(id).await).await;
    }
    for id in ["unreachable", "url"] {
        eventually("its probes have failed", async || {
            client.check_health(id).await.unwrap().reason == Some(UnhealthyReason::ProbeFailed)
        })
        .await;
    }
    let living: Vec<_> = kinds.iter().filter(|kind| is_kept_alive(kind)).collect();
    let beat = async |id: &str| client.heartbeat(id).await.unwrap();

    let before = revisions(&client).await;
    let revision = store.revision().await;
    // Longer than two reconciliations.
    let (began, time) = (Instant::now(), Duration::from_secs(length(130, 0)));
    let mut rounds = 0;
    while began.elapsed() < time || rounds < 5 {
        for registration in &living {
            beat(&registration.agent_id).await;
        }
        // A registration that changes nothing counts as a heartbeat.
        client.register(living[rounds % living.len()]).await.unwrap();
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let after = store.revision().await;
    println!(
        "{} agents of all kinds for {:.0?}: revision {revision} before, {after} after, without an edit",
        kinds.len(),
        began.elapsed()
    );
    for server in &servers {
        assert_eq!(revisions(&server.patient_client()).await, before);
    }
    assert_eq!(after, revision, "something was announced, and nothing had happened:\n{}", servers[0].log());
}

fn is_kept_alive(registration: &Registration) -> bool {
    registration.status != AgentStatus::Offline
        && registration.heartbeat_interval.is_some_and(|interval| interval > Duration::from_secs(40))
        && !["offline-later", "busy-later"].contains(&registration.agent_id.as_str())
}

async fn revisions(client: &RegistryClient) -> BTreeMap<String, Option<u64>> {
    let agents = client.list_agents(ListQuery::all()).await.unwrap().agents;
    agents.into_iter().map(|record| (record.agent_id, record.revision)).collect()
}

fn kinds(healthy_url: &str) -> Vec<Registration> {
    let long = Duration::from_secs(86_400);
    let lasting = |id: &str| {
        Registration::new(id, id, healthy_url).capability(Capability::new("work")).heartbeat_interval(long)
    };
    let mut deep =
        json!({"": "\u{7f}\u{2028}\"\\/", "numbers": [0.1, 1e-7, 1e300, -0.0, 9_007_199_254_740_993_i64]});
    for level in 0..25 {
        deep = json!({ format!("level {level}"): [deep, null, true] });
    }
    let seconds = |seconds| Duration::from_secs_f64(seconds);
    vec![
        lasting("plain"),
        Registration::new("no-capabilities", "None", healthy_url).heartbeat_interval(long),
        Registration::new("unicode", "Größe ✓ 𝔘𝔫𝔦 \u{202e}e\u{301}", healthy_url)
            .capability(
                Capability::new("İstanbul_ß")
                    .description("\t\"quoted\" \\ 漢字")
                    .cost_estimate("~1 €")
                    .tag("ǅ"),
            )
            .heartbeat_interval(long),
        Registration::new("url", "Url", "HTTP://127.0.0.1:9/a%20b/../ß;x=%41").heartbeat_interval(long),
        lasting("health-path").health_path("/ß/%41;\"'").probe(ProbeMode::On),
        lasting("not-probed").no_probe(),
        lasting("metadata")
            .metadata("deep", deep)
            .metadata("z", 1)
            .metadata("a", json!({"b": 0.3, "a": [1.0, 1]})),
        lasting("empty-metadata").metadata("", json!({})),
        lasting("interval-45.5").heartbeat_interval(seconds(45.5)),
        lasting("interval-3600.1").heartbeat_interval(seconds(3_600.1)),
        lasting("interval-third").heartbeat_interval(seconds(1_000.0 / 3.0)),
        lasting("interval-nanos").heartbeat_interval(Duration::new(100, 123_456_789)),
        lasting("interval-of-a-tenth").heartbeat_interval(seconds(0.1)),
        lasting("instance").instance_id("one"),
        lasting("instance-with-age").instance_id("two").instance_age(seconds(12.345_678)),
        lasting("busy").status(AgentStatus::Busy),
        lasting("busy-later"),
        lasting("offline").status(AgentStatus::Offline),
        lasting("offline-later"),
        Registration::new("silent", "Silent", healthy_url),
        Registration::new("silent-busy", "Silent", healthy_url).status(AgentStatus::Busy),
        Registration::new("unreachable", "Unreachable", "http://127.0.0.1:9").heartbeat_interval(long),
    ]
}

/// An agent that responds to every request with 200.
struct HealthyAgent {
    url: String,
    _serving: JoinSet<()>,
}

impl HealthyAgent {
    async fn start() -> Self {
        const ANSWER: &[u8] =
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 20\r\n\r\n{\"status\":\"healthy\"}";
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4_096];
                    // The test's expectations detect a failed probe.
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(ANSWER).await;
                });
            }
        });
        Self { url, _serving: serving }
    }
}
