//! Servers that are killed or cut off from their database right after acknowledging a heartbeat, and a
//! database that is killed at that moment. The heartbeat must still count: the agent must not go offline
//! before its deadline.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{RegistryClient, RetryPolicy};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{
    Acknowledged, Cluster, Outages, Reader, Server, ShownOffline, Store, agent, client, eventually, length,
    patient_client, wall_clock,
};

const SERVERS: usize = 3;

/// Heartbeat timeout, which is exactly twice the interval.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Times are stored in milliseconds, and measured by another process's clock.
const ROUNDING: Duration = Duration::from_millis(50);

/// Number of agents that send their heartbeats at the same moment, and so in one batch.
const GROUP: usize = 10;

fn agents() -> usize {
    length(200, 30)
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_heartbeat_survives_a_killed_server() {
    let store = Store::postgres().await;
    let world = World::start(&store.url, TIMEOUT).await;
    for round in 0..length(40, 3) {
        let victim = round % SERVERS;
        world.strike(Strike::Kill(victim)).await;
        world.servers[victim].lock().await.start().await;
        world.recovers().await;
    }
    world.report("SIGKILL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_heartbeat_survives_a_server_cut_off_from_the_database() {
    let store = Store::postgres().await;
    let world = World::start(&store.url, TIMEOUT).await;
    for round in 0..length(40, 4) {
        let victim = round % SERVERS;
        let fault = if round % 2 == 0 { Fault::Refuse } else { Fault::Hang };
        world.strike(Strike::Cut(victim, fault)).await;
        world.proxies[victim].set(Fault::None);
        world.cuts[victim].end();
        world.recovers().await;
    }
    world.report("cut from PostgreSQL").await;
}

/// The commit of a heartbeat does not wait for the disk, so PostgreSQL may lose it. The server that
/// acknowledged it has half a timeout to write it again. In the short run, a busy machine might make this
/// slow.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_heartbeat_survives_a_killed_database() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let cluster = Arc::new(cluster);
    let world = World::start(&cluster.url(), length(TIMEOUT, 3 * TIMEOUT)).await;
    for round in 0..length(20, 1) {
        world.strike(Strike::KillDatabase(round % SERVERS, cluster.clone())).await;
        world.recovers().await;
    }
    world.report("PostgreSQL killed").await;
}

/// The fault that follows an acknowledged heartbeat.
#[derive(Clone)]
enum Strike {
    Kill(usize),
    Cut(usize, Fault),
    KillDatabase(usize, Arc<Cluster>),
}

impl Strike {
    /// Returns the server to which agents send their heartbeats.
    fn server(&self) -> usize {
        match self {
            Self::Kill(server) | Self::Cut(server, _) | Self::KillDatabase(server, _) => *server,
        }
    }
}

/// Three servers, each behind its own proxy, and agents that send heartbeats to any of them.
struct World {
    timeout: Duration,
    servers: Arc<Vec<tokio::sync::Mutex<Server>>>,
    proxies: Arc<Vec<FaultProxy>>,
    cuts: Vec<Arc<Outages>>,
    /// The fault to cause after the next acknowledged heartbeat.
    planned: Arc<Mutex<Option<Strike>>>,
    readers: Vec<Reader>,
    clients: Vec<RegistryClient>,
    living: JoinSet<()>,
}

impl World {
    async fn start(database_url: &str, timeout: Duration) -> Self {
        let options: PgConnectOptions = database_url.parse().unwrap();
        let (mut servers, mut proxies, mut urls) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SERVERS {
            let proxy = FaultProxy::start(format!("{}:{}", options.get_host(), options.get_port())).await;
            let mut through = url::Url::parse(database_url).unwrap();
            through.set_ip_host(proxy.address().ip()).unwrap();
            through.set_port(Some(proxy.address().port())).unwrap();
            let timeout = format!("{}s", timeout.as_secs());
            let flags = ["--heartbeat-timeout", &timeout, "--sweep-interval", "200ms"];
            let server = Server::running(through.as_str(), &flags).await;
            urls.push(server.url());
            servers.push(tokio::sync::Mutex::new(server));
            proxies.push(proxy);
        }
        let acknowledged = Acknowledged::new(agents(), timeout);
        let cuts: Vec<Arc<Outages>> = (0..SERVERS).map(|_| Arc::default()).collect();
        for number in 0..agents() {
            let registration = agent(&format!("agent-{number}"), "endure").heartbeat_interval(timeout / 2);
            patient_client(&urls[0]).register(&registration).await.unwrap();
        }
        let mut world = Self {
            timeout,
            servers: Arc::new(servers),
            proxies: Arc::new(proxies),
            planned: Arc::default(),
            readers: Vec::new(),
            clients: urls.iter().map(|url| client(url)).collect(),
            cuts,
            living: JoinSet::new(),
        };
        for number in 0..agents() {
            let agent = LivingAgent {
                number,
                timeout,
                clients: urls.iter().map(|url| hasty_client(url, timeout / 8)).collect(),
                acknowledged: acknowledged.clone(),
                planned: world.planned.clone(),
                servers: world.servers.clone(),
                proxies: world.proxies.clone(),
                cuts: world.cuts.clone(),
            };
            world.living.spawn(agent.live());
        }
        for (url, cuts) in urls.iter().zip(&world.cuts) {
            let cuts = cuts.clone();
            let is_wrong = move |shown: &ShownOffline| {
                let has_database = !shown.is_stale && !cuts.overlap(shown.asked, shown.came);
                let is_living = shown.silence() + ROUNDING < timeout;
                has_database && is_living && cuts.is_shown_from(shown.kept_since) < shown.asked
            };
            world.readers.push(Reader::start(url, &acknowledged, is_wrong));
        }
        sleep(timeout / 2).await;
        world
    }

    /// Causes a fault right after the next acknowledged heartbeat, and waits until its deadline has passed.
    async fn strike(&self, strike: Strike) {
        println!("{}: server {} is struck after the next answer", wall_clock(), strike.server());
        *self.planned.lock() = Some(strike);
        eventually("a heartbeat is acknowledged", async || self.planned.lock().is_none()).await;
        sleep(self.timeout).await;
    }

    /// Waits until all servers are healthy, and all agents have had time for a heartbeat.
    async fn recovers(&self) {
        for client in &self.clients {
            eventually("the server is healthy", async || client.get_server_health().await.is_ok()).await;
        }
        sleep(self.timeout / 2).await;
    }

    async fn report(&self, what: &str) {
        for (number, reader) in self.readers.iter().enumerate() {
            reader.report(&format!("{what}: server {number}"), &*self.servers[number].lock().await);
        }
    }
}

/// Creates a client that gives up on a hanging server early enough to try another one.
fn hasty_client(url: &str, timeout: Duration) -> RegistryClient {
    RegistryClient::builder(url).timeout(timeout).retry(RetryPolicy::none()).build().unwrap()
}

struct LivingAgent {
    number: usize,
    timeout: Duration,
    /// One client per server.
    clients: Vec<RegistryClient>,
    acknowledged: Arc<Acknowledged>,
    planned: Arc<Mutex<Option<Strike>>>,
    servers: Arc<Vec<tokio::sync::Mutex<Server>>>,
    proxies: Arc<Vec<FaultProxy>>,
    cuts: Vec<Arc<Outages>>,
}

impl LivingAgent {
    async fn live(self) {
        let id = format!("agent-{}", self.number);
        let groups = u32::try_from(agents().div_ceil(GROUP)).unwrap();
        let group = u32::try_from(self.number / GROUP).unwrap();
        let interval = self.timeout / 2;
        let mut due = Instant::now() + interval * group / groups;
        loop {
            sleep_until(due).await;
            let planned = self.planned.lock().as_ref().map(Strike::server);
            if let Some(server) = planned {
                let began = Instant::now();
                if self.heartbeat(&id, server).await {
                    let planned = self.planned.lock().take();
                    if let Some(strike) = planned {
                        self.carry_out(strike).await;
                    }
                    // Late, but before the deadline: if the acknowledged heartbeat was lost, this shows after
                    // half a timeout.
                    due = began + self.timeout * 3 / 4;
                    continue;
                }
            }
            // Try any server first, and the others if it does not respond.
            due = Instant::now() + interval;
            let first = fastrand::usize(..SERVERS);
            for server in (0..SERVERS).map(|next| (first + next) % SERVERS) {
                if self.heartbeat(&id, server).await {
                    break;
                }
            }
        }
    }

    /// Sends a heartbeat, and returns whether it was acknowledged.
    async fn heartbeat(&self, id: &str, server: usize) -> bool {
        let sent = wall_clock();
        let is_acknowledged = self.clients[server].heartbeat(id).await.is_ok();
        if is_acknowledged {
            self.acknowledged.note(self.number, sent);
        }
        is_acknowledged
    }

    async fn carry_out(&self, strike: Strike) {
        match strike {
            Strike::Kill(server) => self.servers[server].lock().await.kill(),
            Strike::Cut(server, fault) => {
                self.cuts[server].begin();
                self.proxies[server].set(fault);
            }
            Strike::KillDatabase(_, cluster) => {
                cluster.kill();
                cluster.begin().await;
            }
        }
    }
}
