//! Four times the load that the server can carry: searches, registrations and heartbeats at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{AgentRecord, AgentStatus};
use registry_sdk::{ListQuery, RegistryClient, WatchEvent};

use crate::support::{Load, Server, Store, agent, eventually, is_long, length, on_both};

on_both!(overload_does_not_delay_heartbeats_of_other_agents);

/// Multiple of the load that the server can carry.
const TIMES: f64 = 4.0;

/// Interval of the agents' heartbeats in seconds. The timeout is more than twice as long.
const INTERVAL: f64 = 2.0;
const TIMEOUT: &str = "5s";

type Request = (&'static str, String, String);

/// Name of the load, number of its connections, and its requests.
type Kind = (&'static str, u32, fn(u64) -> Request);

fn search(_: u64) -> Request {
    ("GET", "/capabilities/search?q=work&limit=100".to_owned(), String::new())
}

/// A registration that changes an existing agent.
fn registration(number: u64) -> Request {
    let id = format!("flood-{}", number % 500);
    let body = serde_json::to_string(&agent(&id, &format!("capability-{number}"))).unwrap();
    ("POST", "/register".to_owned(), body)
}

fn heartbeat(number: u64) -> Request {
    ("POST", format!("/agents/flood-{}/heartbeat", number % 500), String::new())
}

async fn overload_does_not_delay_heartbeats_of_other_agents(store: Store) {
    let agents: u64 = length(2_000, 200);
    let time = Duration::from_secs(length(240, 4));
    let server = Server::running(
        &store.url,
        &["--heartbeat-timeout", length(TIMEOUT, "1h"), "--sweep-interval", "500ms"],
    )
    .await;
    let (address, client) = (server.address(), server.patient_client());
    for number in 0..agents {
        client.register(&agent(&format!("agent-{number}"), "work")).await.unwrap();
    }
    for number in 0..500 {
        client.register(&agent(&format!("flood-{number}"), "flood")).await.unwrap();
    }
    // From now on, each agent sends its heartbeats.
    let beat =
        move |number: u64| ("POST", format!("/agents/agent-{}/heartbeat", number % agents), String::new());
    let beats = Load::start(&address, 64, agents as f64 / INTERVAL, beat);
    // The first agents may have been offline before, since all were registered one after another.
    let all_active = async || {
        let offline = client.list_agents(ListQuery::all()).await.unwrap().agents.into_iter();
        offline.filter(is_offline).all(|agent| agent.agent_id.starts_with("flood-"))
    };
    eventually("all agents are active", all_active).await;
    let offline = watch_offline(&client);

    let second = Duration::from_secs(length(3, 1));
    let kinds: [Kind; 3] = [
        ("searches", length(1_200, 150), search),
        ("registrations", length(400, 50), registration),
        ("heartbeats", length(400, 50), heartbeat),
    ];
    let mut carried = Vec::new();
    for (_, _, request) in kinds {
        carried.push(Load::most(&address, 64, second, request).await);
    }

    let floods: Vec<_> = kinds
        .iter()
        .zip(&carried)
        .map(|((_, connections, request), carried)| {
            Load::start(&address, *connections, TIMES * carried, *request)
        })
        .collect();
    let beats_before = beats.good.count();
    let (began, mut memory) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        tokio::time::sleep(time / 60).await;
        memory.push(server.memory());
    }
    for ((what, ..), flood) in kinds.iter().zip(&floods) {
        eventually(&format!("{what} have a share"), async || flood.good.count() > 0).await;
    }
    let flooded = began.elapsed().as_secs_f64();
    for (((what, ..), carried), flood) in kinds.iter().zip(&carried).zip(&floods) {
        let refused = flood.refused.load(Ordering::Relaxed);
        println!(
            "{what}: it carries {carried:.0}/s; asked for four times as much it answered {:.0}/s, p99 {:?}, and refused \
             {:.0}/s; {} failed",
            flood.rate(),
            flood.good.quantile(990),
            refused as f64 / flooded,
            flood.failed.load(Ordering::Relaxed)
        );
        assert_eq!(flood.failed.load(Ordering::Relaxed), 0, "{what}: neither answered nor refused");
    }
    let (wrong, sent) = (beats.refused.load(Ordering::Relaxed), beats.good.count() - beats_before);
    let p99 = beats.good.quantile(990);
    println!("the agents' own heartbeats: {sent} answered, p99 {p99:?}, {wrong} refused");
    let accepted = floods[2].good.quantile(990);
    // In the short run, speed is not checked.
    let in_time = |took: Duration| !is_long() || took < Duration::from_secs(1);
    assert!(in_time(p99) && in_time(accepted), "{p99:?}, {accepted:?}");
    let third = memory.len() / 3;
    let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len() as u64;
    let (second, last) = (mean(&memory[third..2 * third]), mean(&memory[2 * third..]));
    let (early, most) = (memory[memory.len() / 6], memory.iter().max().copied().unwrap_or_default());
    println!(
        "memory: {early} KiB after a sixth of the time, {second} in the second third, {last} in the last, at most {most}"
    );
    let holds = last as f64 <= 1.03 * second as f64 && most as f64 <= 1.1 * early as f64;
    assert!(!is_long() || holds, "memory grows: {memory:?}");

    drop(floods);
    let ended = Instant::now();
    // In the short run, any rate will do, since full speed depends on the other load of the machine.
    let enough = length(0.8 * carried[2], 0.0);
    let is_back = async || Load::most(&address, 64, Duration::from_millis(500), heartbeat).await > enough;
    eventually("the server is as fast as before", is_back).await;
    let back = ended.elapsed();
    println!("full speed again after {back:?}, with the half second that measures it");
    assert!(!is_long() || back < Duration::from_secs(5), "{back:?}");
    let offline: Vec<String> = offline.lock().iter().filter(|id| id.starts_with("agent-")).cloned().collect();
    assert!(offline.is_empty(), "called offline, and alive: {offline:?}");
    println!("0 of {agents} agents were called offline");
}

fn is_offline(agent: &AgentRecord) -> bool {
    agent.status == AgentStatus::Offline
}

/// Collects the agents that are reported offline from now on.
fn watch_offline(client: &RegistryClient) -> Arc<Mutex<HashSet<String>>> {
    let offline: Arc<Mutex<HashSet<String>>> = Arc::default();
    let (mut watch, seen) = (client.watch(), offline.clone());
    tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            let agents = match event {
                WatchEvent::Listed(agents) => agents,
                WatchEvent::StatusChanged(agent) => vec![agent],
                _ => continue,
            };
            let offline = agents.into_iter().filter(|agent| is_offline(agent));
            seen.lock().extend(offline.map(|agent| agent.agent_id.clone()));
        }
    });
    offline
}
