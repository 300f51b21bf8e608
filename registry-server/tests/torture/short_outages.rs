//! Repeated outages shorter than the heartbeat timeout. They must neither keep a dead agent alive nor take a
//! living one offline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use registry_sdk::contract::AgentStatus;
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{Agent, RegistryClient};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{
    Acknowledged, Cluster, Outages, Reader, Server, ShownOffline, agent, eventually, is_long, length,
    patient_client, wall_clock,
};

const AGENTS: usize = 30;

/// Maximum number of outages until a dead agent is detected.
///
/// An outage excuses silence for its own length, and for as long again but at most half a timeout. So each
/// cycle counts at least a second of silence, however busy the machine is.
const MAX_OUTAGES: u32 = 20;

/// Additional length of an outage for a server.
///
/// Its last poll was up to half a second earlier, and it recovers with its next successful connection
/// attempt, after one that may run into its timeout of a second.
const UNNOTICED: Duration = Duration::from_millis(1_500);

/// Maximum effect of an outage on a living agent: a server only notices it after three polls.
const NOTICE: Duration = Duration::from_secs(2);

/// The heartbeat timeout. [`interval`] is the interval of the agents' heartbeats.
fn timeout() -> Duration {
    Duration::from_secs(length(12, 7))
}

fn interval() -> Duration {
    Duration::from_secs(length(4, 1))
}

/// Duration of an outage of the database, and of the time in between.
///
/// The latter must be longer than half a timeout plus the half second between two polls, or no silence would
/// ever count.
fn database_cycle() -> (Duration, Duration) {
    (Duration::from_millis(length(3_000, 2_500)), Duration::from_millis(length(8_000, 5_000)))
}

/// The same for the connection between the second server and the database.
fn proxy_cycle() -> (Duration, Duration) {
    (Duration::from_millis(length(8_000, 5_000)), Duration::from_millis(length(9_000, 5_500)))
}

#[tokio::test(flavor = "multi_thread")]
async fn short_pauses_of_the_database_do_not_affect_deadlines() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let cluster = Arc::new(cluster);
    let server = running(&cluster.url()).await;
    let agents = Agents::start(&server.url()).await;
    let pauses = Pauses::start(&cluster, &[&server]);
    let reader = agents.read(&server, is_wrong(pauses.outages.clone()));
    for round in 0..length(4, 1) {
        let silent = Silent::register(&agents.client, round, &pauses).await;
        silent.is_noticed_by(&server, &pauses, None).await;
    }
    pauses.after(4).await;
    reader.report("the server", &server);
}

/// The database pauses for both servers, and the second one is additionally cut off for longer.
#[tokio::test(flavor = "multi_thread")]
async fn short_pauses_do_not_affect_deadlines_on_a_server_that_is_also_cut_off() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let cluster = Arc::new(cluster);
    let proxy = FaultProxy::start(cluster.url().split(['@', '/']).nth(3).unwrap()).await;
    let through = format!("postgres://registry@{}/postgres", proxy.address());
    let servers = [running(&cluster.url()).await, running(&through).await];
    let agents = Agents::start(&format!("{},{}", servers[0].url(), servers[1].url())).await;
    let pauses = Pauses::start(&cluster, &[&servers[0]]);
    let cuts = Arc::<Outages>::default();
    let _cutting = cut(proxy, cuts.clone());
    let reader = agents.read(&servers[0], is_wrong(pauses.outages.clone()));
    let (is_wrong, known) = (is_wrong(pauses.outages.clone()), cuts.clone());
    // While it is cut off, the server cannot know about heartbeats to the other one.
    let cut_off_reader = agents.read(&servers[1], move |shown| {
        let has_database = !shown.is_stale && !known.overlap(shown.asked, shown.came);
        has_database && known.is_shown_from(shown.kept_since) < shown.asked && is_wrong(shown)
    });
    for round in 0..length(4, 1) {
        let silent = Silent::register(&agents.client, round, &pauses).await;
        silent.is_noticed_by(&servers[0], &pauses, None).await;
        silent.is_noticed_by(&servers[1], &pauses, Some(&cuts)).await;
    }
    pauses.after(6).await;
    reader.report("the server beside it", &servers[0]);
    cut_off_reader.report("the server that is cut off", &servers[1]);
}

async fn running(database_url: &str) -> Server {
    let timeout = format!("{}s", timeout().as_secs());
    Server::running(database_url, &["--heartbeat-timeout", &timeout, "--sweep-interval", "500ms"]).await
}

/// An agent may only go offline after a timeout during which the database was available.
fn is_wrong(outages: Arc<Outages>) -> impl Fn(&ShownOffline) -> bool + Send + 'static {
    move |shown| {
        let (_, paused) = outages.between(shown.acknowledged, shown.came);
        let is_due = shown.silence() + NOTICE < timeout() + paused;
        is_due && outages.is_shown_from(shown.kept_since) < shown.asked
    }
}

/// Agents of the SDK, whose retries back off while the registry responds with 503.
struct Agents {
    client: RegistryClient,
    acknowledged: Arc<Acknowledged>,
    _living: Vec<Agent>,
}

impl Agents {
    async fn start(urls: &str) -> Self {
        let acknowledged = Acknowledged::new(AGENTS, timeout());
        let mut living = Vec::new();
        for number in 0..AGENTS {
            let registration = agent(&format!("agent-{number}"), "endure").heartbeat_interval(interval());
            let agent = Agent::new(RegistryClient::new(urls).unwrap(), registration);
            agent.register_with_retry().await.unwrap();
            agent.start_heartbeat(interval()).unwrap();
            acknowledged.follow(number, &agent);
            living.push(agent);
        }
        Self { client: patient_client(urls), acknowledged, _living: living }
    }

    fn read(&self, server: &Server, is_wrong: impl Fn(&ShownOffline) -> bool + Send + 'static) -> Reader {
        Reader::start(&server.url(), &self.acknowledged, is_wrong)
    }
}

/// Repeated pauses of the database.
struct Pauses {
    outages: Arc<Outages>,
    count: Arc<AtomicU32>,
    _pausing: JoinSet<()>,
}

impl Pauses {
    fn start(cluster: &Arc<Cluster>, healthy: &[&Server]) -> Self {
        let (outages, count) = (Arc::<Outages>::default(), Arc::<AtomicU32>::default());
        let clients: Vec<RegistryClient> = healthy.iter().map(|server| server.client()).collect();
        let (cluster, known, counted) = (cluster.clone(), outages.clone(), count.clone());
        let mut pausing = JoinSet::new();
        pausing.spawn(async move {
            let (away, there) = database_cycle();
            loop {
                cluster.pause();
                known.begin();
                sleep(away).await;
                known.end();
                cluster.go_on();
                for client in &clients {
                    eventually("the server is healthy", async || client.get_server_health().await.is_ok())
                        .await;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                sleep(there).await;
            }
        });
        Self { outages, count, _pausing: pausing }
    }

    fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits until there have been this many pauses since the beginning.
    async fn after(&self, pauses: u32) {
        eventually("the pauses go on", async || self.count() >= pauses).await;
    }
}

/// Repeatedly cuts a server's connection to the database: connections are refused, or hang.
fn cut(proxy: FaultProxy, cuts: Arc<Outages>) -> JoinSet<()> {
    let mut cutting = JoinSet::new();
    cutting.spawn(async move {
        let (away, there) = proxy_cycle();
        for fault in [Fault::Refuse, Fault::Hang].into_iter().cycle() {
            sleep(there).await;
            cuts.begin();
            proxy.set(fault);
            sleep(away).await;
            proxy.set(Fault::None);
            cuts.end();
        }
    });
    cutting
}

/// An agent that registers, and then falls silent.
struct Silent {
    id: String,
    since: i64,
    /// Number of pauses before the agent fell silent.
    pauses: u32,
}

impl Silent {
    async fn register(client: &RegistryClient, round: u32, pauses: &Pauses) -> Self {
        let id = format!("silent-{round}");
        let record = client.register(&agent(&id, "rest")).await.unwrap();
        Self { id, since: record.last_heartbeat.unwrap().unix_millis(), pauses: pauses.count() }
    }

    async fn is_noticed_by(&self, server: &Server, pauses: &Pauses, cuts: Option<&Outages>) {
        let client = server.patient_client();
        eventually("it is offline", async || {
            let known = client.get_agent(&self.id).await;
            let pauses = pauses.count() - self.pauses;
            assert!(
                pauses <= MAX_OUTAGES,
                "still not offline after {pauses} pauses: {known:?}\n{}",
                server.log()
            );
            known.is_ok_and(|record| record.status == AgentStatus::Offline)
        })
        .await;
        let now = wall_clock();
        let took = Duration::from_millis((now - self.since).try_into().unwrap());
        let (count, away) = pauses.outages.between(self.since, now);
        let (cuts, cut) = cuts.map(|cuts| cuts.between(self.since, now)).unwrap_or_default();
        println!(
            "{}: offline {took:.1?} after its last word, {count} pauses of {away:.1?} in all and {cuts} cuts of {cut:.1?}",
            self.id
        );
        let excused = 2 * (away + cut + UNNOTICED * (count + cuts));
        assert!(!is_long() || took < timeout() + excused + NOTICE, "{took:?}: {}", server.log());
    }
}
