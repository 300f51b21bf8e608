//! Kills a registry ten times while two hundred agents use it, and measures what they notice.
//!
//! `cargo run --example chaos` starts the real server in a separate process on a temporary SQLite file, kills it with
//! SIGKILL, and starts it again. For each restart it prints the time until the registry had heard all agents again, the largest
//! number of heartbeats and registrations in any 100 ms, and how many running agents were called offline, or ended agents
//! active. It takes about two minutes. `REGISTRY_DATABASE_URL=postgres://…` runs it on PostgreSQL.
#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::{Agent, ListQuery, RegistryClient, RetryPolicy};
use registry_server::{Config, Server};
use tokio::time::sleep;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const AGENTS: usize = 200;
const RESTARTS: usize = 10;
/// Number of agents that end before each restart without deregistering.
const ENDING: usize = 5;
const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which the registry stays down, long enough for every agent to notice.
const DOWN: Duration = Duration::from_secs(3);

fn main() -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    match std::env::args().nth(1).as_deref() {
        Some("serve") => runtime.block_on(serve()),
        _ => runtime.block_on(play()),
    }
}

/// The registry's process, which runs this program.
async fn serve() -> Outcome {
    let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let config = Config {
        listen: setting("CHAOS_LISTEN")?.parse()?,
        database_url: setting("CHAOS_DATABASE")?,
        heartbeat_timeout: TIMEOUT,
        sweep_interval: Duration::from_millis(500),
        ..Config::default()
    };
    let _server = Server::bind(config).await?;
    std::future::pending().await
}

async fn play() -> Outcome {
    let heard = Heard::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(heard.clone()))?;
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite://{}", folder.path().join("registry.db").display());
    let database = std::env::var("REGISTRY_DATABASE_URL").unwrap_or(file);
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut registry = Registry::start(port, &database)?;
    let client = RegistryClient::builder(format!("http://127.0.0.1:{port}")).build()?;

    let mut agents: Vec<Agent> = (0..AGENTS).map(|number| agent(&client, number)).collect();
    for agent in &agents {
        agent.register_with_retry().await?;
        agent.start_heartbeat(INTERVAL)?;
    }
    println!(
        "{AGENTS} agents, a heartbeat every {INTERVAL:?}, offline after {TIMEOUT:?}; down for {DOWN:?} each time"
    );
    println!("restart   all heard again after   most requests in 100 ms   false offline   false active");
    let mut ended = HashSet::new();
    for round in 1..=RESTARTS {
        for agent in agents.drain(..ENDING) {
            ended.insert(agent.agent_id().to_owned());
        }
        heard.forget();
        registry.kill()?;
        sleep(DOWN).await;
        registry = Registry::start(port, &database)?;
        let began = Instant::now();
        let running: HashSet<_> = agents.iter().map(|agent| agent.agent_id().to_owned()).collect();
        let mut back = None;
        let mut false_offline = HashSet::new();
        // One timeout in which no agent goes offline, and another until agents that ended do.
        while began.elapsed() < 2 * TIMEOUT || back.is_none() {
            if back.is_none() && heard.has(&running) {
                back = Some(began.elapsed());
            }
            let offline = listed(&client, AgentStatus::Offline).await;
            false_offline.extend(offline.intersection(&running).cloned());
            sleep(Duration::from_millis(20)).await;
        }
        let active = listed(&client, AgentStatus::Active).await;
        println!(
            "{round:>7}   {:>19.2} s   {:>23}   {:>13}   {:>12}",
            back.unwrap_or_default().as_secs_f64(),
            heard.most_within(Duration::from_millis(100)),
            false_offline.len(),
            active.intersection(&ended).count(),
        );
    }
    for agent in agents {
        agent.shutdown_within(Duration::from_secs(1)).await;
    }
    registry.kill()?;
    Ok(())
}

fn agent(client: &RegistryClient, number: usize) -> Agent {
    let id = format!("chaos-{number:03}");
    let registration = Registration::new(&id, &id, "http://chaos:8000")
        .capability(Capability::new("endure"))
        .heartbeat_interval(INTERVAL);
    Agent::new(client.clone(), registration)
}

/// Returns the ids of all agents with a status, or none while the registry does not answer.
async fn listed(client: &RegistryClient, status: AgentStatus) -> HashSet<String> {
    let client = client.with_retry(RetryPolicy::none());
    let page = client.list_agents(ListQuery::all().status(status)).await;
    page.map(|page| page.agents.into_iter().map(|agent| agent.agent_id).collect()).unwrap_or_default()
}

/// The registry's process. It is killed when this is dropped.
struct Registry(Child);

impl Registry {
    fn start(port: u16, database: &str) -> Outcome<Self> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("serve").env("CHAOS_LISTEN", format!("127.0.0.1:{port}")).env("CHAOS_DATABASE", database);
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    /// Ends the process with SIGKILL, as a crash would.
    fn kill(&mut self) -> Outcome {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Records from the SDK's log which agents the registry has heard, and when.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(Instant, String)>>>);

impl Heard {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, String)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn forget(&self) {
        self.all().clear();
    }

    fn has(&self, agents: &HashSet<String>) -> bool {
        let all = self.all();
        let heard: HashSet<_> = all.iter().map(|(_, agent)| agent).collect();
        agents.iter().all(|agent| heard.contains(agent))
    }

    fn most_within(&self, window: Duration) -> usize {
        let all = self.all();
        let from = |(index, (begin, _)): (usize, &(Instant, String))| {
            all[index..].iter().take_while(|(at, _)| *at - *begin < window).count()
        };
        all.iter().enumerate().map(from).max().unwrap_or_default()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if matches!(fields.message.as_str(), "registered" | "heartbeat") {
            self.all().push((Instant::now(), fields.agent_id));
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    agent_id: String,
}

impl tracing::field::Visit for Fields {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "agent_id" {
            value.clone_into(&mut self.agent_id);
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}
