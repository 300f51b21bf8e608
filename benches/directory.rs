//! A directory of many agents: time until it is ready, memory, and the longest pause of the runtime while its content is replaced.
//!
//! `cargo bench --bench directory`. Environment: AGENTS (100000). The server is a child process that runs this same program.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use registry_sdk::contract::{Capability, Registration};
use registry_sdk::discovery::Directory;
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{Freshness, RegistryClient, RetryPolicy};
use registry_server::{Config, Server};
use test_support::ServerProcess;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match ServerProcess::listen_address() {
        Some(address) => tokio::runtime::Runtime::new()?.block_on(serve(address)),
        None => runtime.block_on(measure()),
    }
}

async fn serve(address: SocketAddr) -> Outcome {
    let heartbeat_timeout = Duration::from_secs(86_400);
    let database_url = "sqlite::memory:".to_owned();
    let config = Config { listen: address.into(), database_url, heartbeat_timeout, ..Config::default() };
    let _server = Server::bind(config).await?;
    std::future::pending().await
}

async fn measure() -> Outcome {
    let agents: usize = std::env::var("AGENTS").map_or(Ok(100_000), |count| count.parse())?;
    let server = ServerProcess::start();
    let client =
        RegistryClient::builder(server.url()).retry(RetryPolicy::registration().attempts(100)).build()?;
    while client.get_stats().await.is_err() {}
    let registered = stream::iter(0..agents).map(|number| register(&client, number));
    registered.buffer_unordered(64).collect::<Vec<_>>().await.into_iter().collect::<Outcome>()?;

    let proxy = FaultProxy::start(server.address().to_string()).await;
    let before = memory("VmRSS:")?;
    let began = Instant::now();
    let directory = Directory::follow(&RegistryClient::new(format!("http://{}", proxy.address()))?);
    let (ready, longest) = longest_pause(async { directory.ready().await }).await;
    ready?;
    println!(
        "{} agents: ready after {:.2?}, longest pause of the runtime {longest:.2?}",
        directory.len(),
        began.elapsed()
    );
    println!(
        "{} MiB more than before, {} MiB at most",
        memory("VmRSS:")? - before,
        memory("VmHWM:")? - before
    );
    let ((), longest) = longest_pause(tokio::time::sleep(Duration::from_secs(20))).await;
    println!("listed again in the meantime: longest pause of the runtime {longest:.2?}");
    println!(
        "{} MiB more than before, {} MiB at most",
        memory("VmRSS:")? - before,
        memory("VmHWM:")? - before
    );

    let began = Instant::now();
    let found = directory.search("security 77").len();
    println!("a search that finds {found} agents: {:.2?}", began.elapsed());
    let began = Instant::now();
    for _ in 0..1_000 {
        register(&client, 0).await?;
    }
    println!("1,000 changes made in {:.2?}", began.elapsed());
    proxy.set(Fault::Refuse);
    while directory.freshness() == Some(Freshness::Fresh) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy.set(Fault::None);
    let began = Instant::now();
    while directory.freshness() != Some(Freshness::Fresh) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("followed again {:.2?} after a lost connection", began.elapsed());
    Ok(())
}

/// Runs a future, and measures the longest time for which another task of the runtime had to wait.
async fn longest_pause<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let ticking = async {
        loop {
            tokio::task::yield_now().await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = ticking => unreachable!("it does not end"),
    };
    (done, longest)
}

async fn register(client: &RegistryClient, number: usize) -> Outcome {
    let capability = |name: String| {
        Capability::new(name)
            .description("Looks for known weaknesses in dependencies")
            .tag("sast")
            .tag("security")
    };
    let registration = Registration::new(
        format!("agent-{number:06}"),
        format!("Agent number {number}"),
        format!("http://agents.example:8000/{number}"),
    )
    .capability(capability(format!("security_scanning_{}", number % 100)))
    .capability(capability(format!("code_review_{}", fastrand::u32(..1_000))))
    .metadata("team", format!("team-{}", number % 50));
    client.register(&registration).await?;
    Ok(())
}

/// Returns a value of this process's memory, in MiB.
fn memory(name: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such line")?;
    Ok(line.split_whitespace().nth(1).ok_or("no value")?.parse::<u64>()? / 1_024)
}
