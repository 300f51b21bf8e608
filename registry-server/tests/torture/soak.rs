//! A long time: agents with heartbeats, changes, searches and events, and faults thrown in. What the server takes has to stay
//! what it is.

use std::time::{Duration, Instant};

use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{Agent, RegistryClient};

use crate::support::{Load, Server, Store, agent, is_long, length, on_both};

on_both!(soak);

const INTERVAL: Duration = Duration::from_secs(5);
const WATCHERS: usize = 20;

async fn soak(store: Store) {
    let agents: usize = length(5_000, 100);
    let time = Duration::from_secs(length(1_800, 6));
    let flags = ["--heartbeat-timeout", "15s", "--sweep-interval", "1s"];
    let server = Server::running(&store.url, &flags).await;
    // A tenth of the agents, and half of the watchers, lose their connections again and again.
    let proxy = FaultProxy::before(server.address()).await;
    let (direct, cut) = (
        RegistryClient::new(server.url()).unwrap(),
        RegistryClient::new(format!("http://{}", proxy.address())).unwrap(),
    );
    let live: Vec<Agent> = (0..agents)
        .map(|number| {
            Agent::new(
                if number % 10 == 0 { &cut } else { &direct }.clone(),
                agent(&format!("agent-{number}"), &format!("kind-{}", number % 50)),
            )
        })
        .collect();
    for agent in &live {
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    for number in 0..WATCHERS {
        let mut watch = if number % 2 == 0 { &cut } else { &direct }.watch();
        tokio::spawn(async move { while watch.next().await.is_some() {} });
    }
    let search = |number: u64| ("GET", format!("/capabilities/search?q=kind-{}", number % 50), String::new());
    let searches = Load::start(&server.address(), 8, 200.0, search);
    // Those that come, change and go.
    let change = |number: u64| match number % 4 {
        3 => ("DELETE", format!("/agents/passing-{}", number / 4 % 1_000), String::new()),
        step => {
            let agent = agent(&format!("passing-{}", number / 4 % 1_000), &format!("capability-{step}"));
            ("POST", "/register".to_owned(), serde_json::to_string(&agent).unwrap())
        }
    };
    let changes = Load::start(&server.address(), 4, 60.0, change);

    let mut seen: Vec<(u64, usize, u64)> = Vec::new();
    let (began, mut faults) = (Instant::now(), 0);
    while began.elapsed() < time {
        tokio::time::sleep(time / 180).await;
        seen.push((server.memory(), server.open_files(), store.bytes().await));
        if seen.len().is_multiple_of(6) {
            proxy.set(Fault::Refuse);
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.set(Fault::None);
            faults += 1;
        }
        if seen.len().is_multiple_of(30) {
            println!("{:.0?}: {:?}", began.elapsed(), seen.last().unwrap());
        }
        if store.is_postgres() && seen.len().is_multiple_of(15) {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            sqlx::Executor::execute(&mut store.connect().await, cut).await.unwrap();
            faults += 1;
        }
    }
    let third = seen.len() / 3;
    let mean =
        |part: &[(u64, usize, u64)]| part.iter().map(|(memory, ..)| *memory).sum::<u64>() / part.len() as u64;
    let (second, last) = (mean(&seen[third..2 * third]), mean(&seen[2 * third..]));
    let files = |part: &[(u64, usize, u64)]| part.iter().map(|(_, files, _)| *files).max().unwrap();
    let (files_second, files_last) = (files(&seen[third..2 * third]), files(&seen[2 * third..]));
    let bytes = |part: &[(u64, usize, u64)]| part.iter().map(|(.., bytes)| *bytes).max().unwrap();
    let (bytes_second, bytes_last) = (bytes(&seen[third..2 * third]), bytes(&seen[2 * third..]));
    let stats = direct.get_stats().await.unwrap();
    println!(
        "{:.0?}, {agents} agents, {faults} faults, {} searches, {} changes: memory {second} KiB in the second third and \
         {last} KiB in the last, open files at most {files_second} and {files_last}, database at most {bytes_second} and \
         {bytes_last} bytes; {stats:?}",
        began.elapsed(),
        searches.good.count(),
        changes.good.count(),
    );
    assert!(stats.active_agents >= agents as u64, "{stats:?}");
    if is_long() {
        assert!(last as f64 <= 1.03 * second as f64, "memory grows: {seen:?}");
        assert!(files_last <= files_second + 10, "files are left open: {seen:?}");
        assert!(bytes_last as f64 <= 1.1 * bytes_second as f64, "the database grows: {seen:?}");
    }
    for agent in live {
        agent.shutdown_within(Duration::from_secs(1)).await;
    }
}
