//! A suspended computer: its wall clock continues, while the monotonic clock of its processes stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{AgentStatus, Registration, UnhealthyReason};
use registry_sdk::{RegistryClient, WatchEvent};
use tokio::task::JoinSet;

use crate::support::{FakeClock, LONG, Server, Store, agent, eventually, is_long, length, wall_clock};

const LIVING: usize = 20;

const TIMEOUT: Duration = Duration::from_secs(2);

const HOUR: i64 = 3_600;

/// Maximum lag of the server's clock, which is read at intervals, plus the duration of a request.
const LAG: Duration = Duration::from_secs(3);

/// An agent that keeps sending heartbeats.
///
/// Its timeout is twice its interval: long enough that a busy machine makes no agent late in the short run,
/// and still much shorter than the hour.
fn living(number: usize) -> Registration {
    agent(&format!("agent-{number}"), "work").heartbeat_interval(Duration::from_secs(length(1, 600)))
}

#[tokio::test(flavor = "multi_thread")]
async fn living_agents_stay_online_when_the_computer_was_suspended() {
    let Some(clock) = FakeClock::new() else { return };
    let store = Store::sqlite();
    let timeout = format!("{}s", TIMEOUT.as_secs());
    let mut server =
        clock.server(&store.url, &["--heartbeat-timeout", &timeout, "--sweep-interval", "200ms"]);
    server.start().await;
    let client = server.patient_client();
    for number in 0..LIVING {
        client.register(&living(number)).await.unwrap();
    }
    let heartbeats = Heartbeats::start(&client);
    let offline = Offline::watch(&client).await;

    for suspended in 1..=3 {
        heartbeats.three_rounds().await;
        client.register(&agent("asleep", "rest")).await.unwrap();
        clock.set(&format!("+{}", suspended * HOUR));
        let took = eventually("heartbeats have the wall clock's time", async || {
            heartbeats.three_rounds().await;
            follows_wall_clock(&client, suspended * HOUR * 1_000).await
        })
        .await;
        println!("an hour's sleep: heartbeats have the wall clock's time after {took:.1?}");
        // The result is the same after several polls of the clock.
        for _ in 0..length(10, 2) {
            heartbeats.three_rounds().await;
            assert!(follows_wall_clock(&client, suspended * HOUR * 1_000).await, "{}", server.log());
            is_heard_now(&client).await;
        }
        silent_agents_are_noticed(&server, &format!("silent-{suspended}")).await;
        eventually("the one that fell silent before is offline", async || {
            client.get_agent("asleep").await.unwrap().status == AgentStatus::Offline
        })
        .await;
    }
    // Data written after the jump survives a restart.
    server.stop().await;
    server.start().await;
    heartbeats.three_rounds().await;
    is_heard_now(&client).await;
    assert_eq!(offline.living(), Vec::<String>::new(), "living agents were called offline: {}", server.log());
    assert!(client.get_stats().await.unwrap().active_agents >= LIVING as u64);
}

/// Whether the heartbeats of all living agents have the time of this computer's wall clock.
async fn follows_wall_clock(client: &RegistryClient, off: i64) -> bool {
    for number in 0..LIVING {
        let asked = wall_clock() + off;
        client.heartbeat(&format!("agent-{number}")).await.unwrap();
        let record = client.get_agent(&format!("agent-{number}")).await.unwrap();
        let heard = record.last_heartbeat.unwrap().unix_millis();
        let lag = i64::try_from(LAG.as_millis()).unwrap();
        if heard < asked - lag || heard > wall_clock() + off + lag {
            return false;
        }
    }
    true
}

async fn is_heard_now(client: &RegistryClient) {
    for number in 0..LIVING {
        let (id, sent) = (format!("agent-{number}"), Instant::now());
        client.heartbeat(&id).await.unwrap();
        let health = client.check_health(&id).await.unwrap();
        let since = health.since_heartbeat.unwrap();
        assert!(since < sent.elapsed() + LAG, "{id}: last heard of {since:?} ago");
        assert!(health.is_healthy(), "{health:?}");
    }
}

async fn silent_agents_are_noticed(server: &Server, id: &str) {
    let client = server.patient_client();
    let began = Instant::now();
    client.register(&agent(id, "rest")).await.unwrap();
    eventually("an agent that falls silent is offline", async || {
        client.get_agent(id).await.unwrap().status == AgentStatus::Offline
    })
    .await;
    let took = began.elapsed();
    assert!(took >= TIMEOUT, "offline after {took:?}");
    assert!(!is_long() || took < TIMEOUT + 2 * LAG, "offline after {took:?}");
    assert_eq!(client.check_health(id).await.unwrap().reason, Some(UnhealthyReason::HeartbeatMissed));
    println!("{id} was offline {took:.1?} after it had registered");
}

/// Heartbeats of all living agents, until this is dropped.
struct Heartbeats {
    rounds: Arc<AtomicU64>,
    _sending: JoinSet<()>,
}

impl Heartbeats {
    fn start(client: &RegistryClient) -> Self {
        let (rounds, client) = (Arc::<AtomicU64>::default(), client.clone());
        let counted = rounds.clone();
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            loop {
                for number in 0..LIVING {
                    client.heartbeat(&format!("agent-{number}")).await.unwrap();
                }
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Self { rounds, _sending: sending }
    }

    /// Waits until each agent has sent a few more heartbeats.
    async fn three_rounds(&self) {
        let enough = self.rounds.load(Ordering::SeqCst) + 3;
        eventually("the heartbeats go on", async || self.rounds.load(Ordering::SeqCst) >= enough).await;
    }
}

/// Agents that were reported offline, in events or records.
struct Offline {
    called: Arc<Mutex<Vec<String>>>,
    _watching: JoinSet<()>,
}

impl Offline {
    async fn watch(client: &RegistryClient) -> Self {
        let (called, began) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let mut watching = JoinSet::new();
        let (mut watch, noted, has_begun) = (client.watch(), called.clone(), began.clone());
        watching.spawn(async move {
            while let Some(event) = watch.next().await {
                match event {
                    WatchEvent::Listed(_) => has_begun.store(true, Ordering::SeqCst),
                    WatchEvent::StatusChanged(agent) if agent.status == AgentStatus::Offline => {
                        noted.lock().push(agent.agent_id.clone());
                    }
                    _ => {}
                }
            }
        });
        let (client, noted) = (client.clone(), called.clone());
        watching.spawn(async move {
            let offline = registry_sdk::ListQuery::all().status(AgentStatus::Offline);
            loop {
                let agents = client.list_agents(offline.clone()).await.unwrap().agents;
                noted.lock().extend(agents.into_iter().map(|record| record.agent_id));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let has_begun = async || began.load(Ordering::SeqCst);
        tokio::time::timeout(LONG, eventually("the watch has begun", has_begun)).await.unwrap();
        Self { called, _watching: watching }
    }

    fn living(&self) -> Vec<String> {
        self.called.lock().iter().filter(|id| id.starts_with("agent-")).cloned().collect()
    }
}
