//! Many watchers, many changes: whether every one of them sees every change, in order for each agent, over two
//! replicas and over connections that are cut, and how fast.
//!
//! `cargo bench --bench watchers` runs it on SQLite in memory; `./scripts/watchers` on PostgreSQL. The servers run
//! in processes of their own, which are this program again.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::{StreamExt, stream};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{RegistryClient, Watch, WatchEvent};
use registry_server::{Config, Server};
use tokio::sync::Semaphore;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const AGENTS: usize = 500;
const LAST: &str = "the-last";

fn main() -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    match std::env::var("WATCHERS_LISTEN") {
        Ok(address) => runtime.block_on(serve(&address)),
        Err(_) => runtime.block_on(measure()),
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

async fn serve(address: &str) -> Outcome {
    let database_url = setting("DATABASE_URL", "sqlite::memory:");
    let config = Config { listen: address.parse()?, database_url, ..Config::default() };
    let _server = Server::bind(config).await?;
    std::future::pending().await
}

async fn measure() -> Outcome {
    let watchers: usize = setting("WATCHERS", "1000").parse()?;
    let changes: usize = setting("CHANGES", "10000").parse()?;
    let replicas = if setting("DATABASE_URL", "sqlite::memory:").starts_with("postgres") { 2 } else { 1 };
    let servers: Vec<Process> = (0..replicas).map(|_| Process::start()).collect::<Outcome<_>>()?;
    let mut clients = Vec::new();
    let mut proxies = Vec::new();
    let mut through = Vec::new();
    for server in &servers {
        clients.push(RegistryClient::new(server.url())?);
        let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port)).await;
        through.push(RegistryClient::new(format!("http://{}", proxy.address()))?);
        proxies.push(proxy);
    }
    // One in ten watches through a proxy that cuts its connections.
    let there = Arc::new(Semaphore::new(0));
    let watching = (0..watchers).map(|number| {
        let side = if number % 10 == 0 { &through } else { &clients };
        tokio::spawn(follow(side[number % replicas].watch(), there.clone()))
    });
    let watching: Vec<_> = watching.collect();
    let _all = there.acquire_many(u32::try_from(watchers)?).await?;

    let began = Instant::now();
    let proxies = Arc::new(proxies);
    let cutting = tokio::spawn(cut(proxies.clone()));
    let made = stream::iter(0..changes).map(|number| change(&clients[number % replicas], number));
    let made: Vec<Outcome> = made.buffer_unordered(64).collect().await;
    made.into_iter().collect::<Outcome>()?;
    let made_after = began.elapsed();
    cutting.abort();
    for proxy in proxies.iter() {
        proxy.set(Fault::None);
    }
    // Every change is made by then, so this one is the last of all.
    register(&clients[0], LAST, "last").await?;
    let seen = try_join_all(watching).await?.into_iter().collect::<Outcome<Vec<_>>>()?;
    let seen_after = began.elapsed();

    let expected = &seen.iter().find(|seen| seen.lists == 1).ok_or("everyone began anew")?.revisions;
    let total: usize = expected.values().map(Vec::len).sum();
    let in_order = seen.iter().all(|seen| seen.revisions.values().all(|revisions| revisions.is_sorted()));
    let complete = seen.iter().filter(|seen| seen.revisions == *expected).count();
    let events = seen.iter().map(|seen| seen.revisions.values().map(Vec::len).sum::<usize>()).sum::<usize>();
    println!(
        "{replicas} server(s), {watchers} watchers, {changes} changes of {AGENTS} agents ({total} with the last)"
    );
    println!("all changes made after {made_after:.1?}, seen by all after {seen_after:.1?}");
    #[expect(clippy::cast_precision_loss, reason = "it is a rate")]
    let rate = events as f64 / seen_after.as_secs_f64();
    println!("{events} events were seen, {rate:.0} a second");
    println!("in order for each agent: {in_order}; watchers who saw every change: {complete} of {watchers}");
    println!("watchers that had to begin anew: {}", seen.iter().map(|seen| seen.lists - 1).sum::<usize>());
    if !in_order || complete != watchers {
        return Err("not every watcher saw every change in order".into());
    }
    Ok(())
}

/// What a watcher has seen.
struct Told {
    /// The revisions of each agent's changes, as they came.
    revisions: HashMap<String, Vec<u64>>,
    /// How often everyone was listed: once at the beginning, and again wherever changes were missed.
    lists: usize,
}

async fn follow(mut watch: Watch, there: Arc<Semaphore>) -> Outcome<Told> {
    let mut seen = Told { revisions: HashMap::new(), lists: 0 };
    loop {
        match watch.next().await.ok_or("the watch has ended")? {
            WatchEvent::Listed(_) => {
                seen.lists += 1;
                there.add_permits(1);
            }
            WatchEvent::Registered(agent)
            | WatchEvent::StatusChanged(agent)
            | WatchEvent::Deregistered(agent) => {
                let revision = agent.revision.ok_or("a record without its revision")?;
                seen.revisions.entry(agent.agent_id.clone()).or_default().push(revision);
                if agent.agent_id == LAST {
                    return Ok(seen);
                }
            }
            _ => {}
        }
    }
}

/// Cuts all connections through the proxies again and again.
async fn cut(proxies: Arc<Vec<FaultProxy>>) {
    loop {
        for proxy in proxies.iter() {
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.set(Fault::Refuse);
            tokio::time::sleep(Duration::from_millis(50)).await;
            proxy.set(Fault::None);
        }
    }
}

async fn change(client: &RegistryClient, number: usize) -> Outcome {
    register(client, &format!("agent-{}", number % AGENTS), &format!("capability-{number}")).await
}

async fn register(client: &RegistryClient, id: &str, capability: &str) -> Outcome {
    let registration = Registration::new(id, id, "http://agent:8000").capability(Capability::new(capability));
    client.register(&registration).await?;
    Ok(())
}

/// A server's process. It is killed when this is dropped.
struct Process {
    child: Child,
    port: u16,
}

impl Process {
    fn start() -> Outcome<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(std::env::current_exe()?);
        command.env("WATCHERS_LISTEN", format!("127.0.0.1:{port}")).stdin(Stdio::null());
        let process = Self { child: command.spawn()?, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err("the server does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
