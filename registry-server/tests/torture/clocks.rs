//! Wall clocks that are set forward and back by an hour.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use registry_sdk::Agent;
use registry_sdk::contract::{AgentRecord, AgentStatus};
use test_support::Process;

use crate::support::{Cluster, FakeClock, Server, Store, agent, client, eventually, is_long, length};

/// For agents that must survive jumps of an hour.
///
/// At full length, they come closer to their deadlines: otherwise, a busy machine might make one late.
const LONG_TIMEOUT: &str = "10m";

/// For agents that fall silent.
const TIMEOUT: &str = "2s";

const INTERVAL: Duration = Duration::from_millis(400);
const AGENTS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn agents_stay_online_across_clock_jumps_on_sqlite() {
    let Some(clock) = FakeClock::new() else { return };
    jumps(&clock, &Store::sqlite().url).await;
}

/// The clocks of the server and the database jump together, as on one host.
#[tokio::test(flavor = "multi_thread")]
async fn agents_stay_online_across_clock_jumps_on_postgres() {
    let Some(clock) = FakeClock::new() else { return };
    let Some(cluster) = Cluster::start(&clock.environment()).await else { return };
    jumps(&clock, &cluster.url()).await;
}

fn new_server(clock: &FakeClock, database_url: &str, timeout: &str) -> Server {
    clock.server(database_url, &["--heartbeat-timeout", timeout, "--sweep-interval", "200ms"])
}

async fn jumps(clock: &FakeClock, database_url: &str) {
    let mut server = new_server(clock, database_url, length(TIMEOUT, LONG_TIMEOUT));
    server.start().await;
    let client = server.patient_client();
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| Agent::new(client.clone(), agent(&format!("agent-{number}"), "work")))
        .collect();
    for agent in &agents {
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    for off in ["+3600", "+0", "-3600", "+0", "+3600"] {
        clock.set(off);
        all_live(&server, off, Duration::from_secs(length(10, 2))).await;
    }
    // The clock goes back while the server is down. A server only starts at the true time:
    // PostgreSQL may see the true time in spite of libfaketime. If that is later than the fake time, it ends sessions as
    // idle for too long, and a server that is just starting ends as well.
    server.stop().await;
    clock.set("+0");
    server.start().await;
    all_live(&server, "set back while the server was down", Duration::from_secs(length(4, 2))).await;
    for agent in agents {
        agent.shutdown_within(Duration::from_secs(1)).await;
    }
    server.stop().await;

    // Agents that fall silent are still detected.
    let mut server = new_server(clock, database_url, TIMEOUT);
    server.start().await;
    let client = server.patient_client();
    for off in ["+0", "+3600", "+0", "-3600"] {
        clock.set(off);
        client.register(&agent("silent", "rest")).await.unwrap();
        let took = eventually("the silent one is offline", async || {
            client.get_agent("silent").await.unwrap().status == AgentStatus::Offline
        })
        .await;
        println!("{off} s: an agent that fell silent was offline after {took:.1?}");
        assert!(!is_long() || took < Duration::from_secs(8), "{took:?}");
    }
}

/// At full length, a silent agent must not count as alive for as long as the clock was set back.
#[tokio::test(flavor = "multi_thread")]
async fn silent_agent_goes_offline_after_the_clock_was_set_back_by_less_than_a_minute() {
    let Some(clock) = FakeClock::new() else { return };
    let Some(cluster) = Cluster::start(&clock.environment()).await else { return };
    let flags = ["--heartbeat-timeout", "3s", "--sweep-interval", "500ms"];
    let server = Server::running(&cluster.url(), &flags).await;
    let client = server.patient_client();
    client.register(&agent("silent", "rest")).await.unwrap();
    clock.set("-50");
    let took = eventually("the silent one is offline", async || {
        client.get_agent("silent").await.unwrap().status == AgentStatus::Offline
    })
    .await;
    println!("50 s back: an agent that fell silent was offline after {took:.1?}");
    assert!(!is_long() || took < Duration::from_secs(20), "{took:?}");
}

/// Checks that no agent is offline for a while.
async fn all_live(server: &Server, off: &str, time: Duration) {
    let (client, until) = (server.patient_client(), Instant::now() + time);
    while Instant::now() < until {
        let stats = client.get_stats().await.unwrap();
        assert!(stats.active_agents >= AGENTS as u64, "{off}: {stats:?}; {}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{off}: 0 of {AGENTS} agents were called offline");
}

/// An agent in a process whose clock jumps keeps sending heartbeats.
#[tokio::test(flavor = "multi_thread")]
async fn agent_keeps_its_interval_across_jumps_of_its_own_clock() {
    let Some(clock) = FakeClock::new() else { return };
    let store = Store::sqlite();
    let server = Server::running(&store.url, &["--heartbeat-timeout", length(TIMEOUT, LONG_TIMEOUT)]).await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "clocks::process_of_one_agent", "--ignored"])
        .env("TORTURE_REGISTRY", server.url())
        .envs(clock.environment())
        .stdout(Stdio::null());
    let _process = Process::spawn(&mut command);
    let client = server.patient_client();
    // The agent announces its interval with its last change.
    eventually("the agent has its interval", async || {
        client.get_agent("alone").await.is_ok_and(|record| record.heartbeat_interval == Some(INTERVAL))
    })
    .await;
    let goes_on = async |before: &AgentRecord| {
        eventually("its heartbeats go on", async || {
            client.get_agent("alone").await.unwrap().last_heartbeat > before.last_heartbeat
        })
        .await;
    };
    // On a busy machine, the agent may repeat its registration until it gets a response, and only then send
    // heartbeats.
    for _ in 0..3 {
        goes_on(&client.get_agent("alone").await.unwrap()).await;
    }
    for off in ["+3600", "+0", "-3600"] {
        clock.set(off);
        let before = client.get_agent("alone").await.unwrap();
        tokio::time::sleep(Duration::from_secs(length(10, 0))).await;
        goes_on(&before).await;
        let after = client.get_agent("alone").await.unwrap();
        assert_eq!((after.status, after.revision), (AgentStatus::Active, before.revision), "{off}");
        println!("an agent's own clock {off} s: its heartbeats went on");
    }
}

#[tokio::test]
#[ignore = "run as a process by another test"]
async fn process_of_one_agent() {
    let url = std::env::var("TORTURE_REGISTRY").unwrap();
    let alone = Agent::new(client(&url), agent("alone", "work"));
    alone.register().await.unwrap();
    alone.start_heartbeat(INTERVAL).unwrap();
    std::future::pending::<()>().await;
}
