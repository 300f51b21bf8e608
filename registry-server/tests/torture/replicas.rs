//! Three servers over one PostgreSQL: killed again and again under agents that live, and then brought to a new version one
//! after another.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{Agent, ListQuery, RegistryClient, WatchEvent};
use sqlx::Executor;
use tokio::task::JoinSet;

use crate::support::{LONG, Server, Store, agent, eventually, length};

/// Agents come near their deadlines in the long run alone: elsewhere a busy machine may make one late.
fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("6s", "1h"), "--sweep-interval", "500ms"]
}
const INTERVAL: Duration = Duration::from_secs(2);

/// What a version to come would do to the tables.
const NEXT_VERSION: [&str; 3] = [
    "ALTER TABLE agent_registry ADD COLUMN of_the_next_version text NOT NULL DEFAULT ''",
    "ALTER TABLE agent_registry_event ADD COLUMN of_the_next_version text",
    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
     VALUES (9999, 'of the next version', true, '', 0)",
];

#[tokio::test(flavor = "multi_thread")]
async fn replicas() {
    let store = Store::postgres().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::running(&store.url, &flags()).await);
    }
    let urls = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let client =
        RegistryClient::builder(&urls).timeout(length(Duration::from_secs(10), LONG)).build().unwrap();

    let number: usize = length(2_000, 100);
    let agents: Vec<Agent> = (0..number)
        .map(|number| {
            Agent::new(
                client.clone(),
                agent(&format!("agent-{number}"), "endure").heartbeat_interval(INTERVAL),
            )
        })
        .collect();
    for some in agents.chunks(100) {
        for registered in join_all(some.iter().map(Agent::register)).await {
            registered.unwrap();
        }
    }
    for agent in &agents {
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    // The agents whose status changes are not among those that live on their own.
    for number in 0..20 {
        client
            .register(
                &agent(&format!("changing-{number}"), "change")
                    .heartbeat_interval(Duration::from_secs(3_600)),
            )
            .await
            .unwrap();
    }
    let watchers: Vec<_> = servers.iter().map(|server| Seen::by(&server.client())).collect();
    let everywhere = Seen::by(&client);
    for seen in watchers.iter().chain([&everywhere]) {
        eventually("the watchers have begun", async || seen.began.load(Ordering::Relaxed)).await;
    }
    let callers = Callers::start(&client);

    let kills = length(36, 3);
    for _ in 0..kills {
        callers.go_on_for(Duration::from_secs_f64(length(4.5, 0.0))).await;
        let victim = fastrand::usize(..servers.len());
        servers[victim].kill();
        callers.go_on_for(Duration::from_millis(length(500, 0))).await;
        servers[victim].start().await;
    }
    println!("{kills} kills of one of three servers under {number} agents");
    callers.report("killed");

    let mut connection = store.connect().await;
    for statement in NEXT_VERSION {
        connection.execute(statement).await.unwrap();
    }
    for server in &mut servers {
        server.stop().await;
        server.start().await;
        callers.go_on_for(Duration::from_secs(length(1, 0))).await;
    }
    callers.report("upgraded one after another");
    let done = callers.end().await;

    // Whoever was answered 200 finds it in the database, and on each stream.
    for (place, seen) in watchers.iter().chain([&everywhere]).enumerate() {
        let complete = || done.keys().all(|revision| seen.lists() > 1 || seen.revisions().contains(revision));
        eventually("each change is told on each stream", async || complete()).await;
        let (twice, lists) = (seen.twice.load(Ordering::Relaxed), seen.lists());
        println!("stream {place}: {} changes, {twice} told twice, {lists} lists", seen.revisions().len());
        assert_eq!(twice, 0, "told twice");
        let offline = seen.offline.lock().clone();
        assert!(offline.is_empty(), "called offline, and alive: {offline:?}");
    }
    for server in &servers {
        let all = server.client().list_agents(ListQuery::all()).await.unwrap().agents;
        assert_eq!(all.iter().filter(|record| record.status == AgentStatus::Offline).count(), 0);
        assert_eq!(all.len(), number + 20);
        let last: HashMap<_, _> =
            done.iter().map(|(revision, (id, status))| (id, (*revision, *status))).collect();
        for (id, (revision, status)) in last {
            let record = all.iter().find(|record| record.agent_id == *id).unwrap();
            assert!(
                record.revision.unwrap() > revision || record.status == status,
                "{record:?}: {revision} {status}"
            );
        }
    }
    println!("{} status changes were answered 200, none lost; 0 agents called offline", done.len());
    for some in agents.chunks(200) {
        join_all(some.iter().map(|agent| agent.shutdown_within(Duration::from_secs(1)))).await;
    }
    drop(servers);
    store.remove().await;
}

/// Those who use the SDK with three URLs, and see no error.
struct Callers {
    errors: Arc<Mutex<Vec<String>>>,
    calls: Arc<AtomicU64>,
    /// Status changes that were answered, by the revision of the answer, in their order for each agent.
    done: Arc<Mutex<std::collections::BTreeMap<u64, (String, AgentStatus)>>>,
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Callers {
    fn start(client: &RegistryClient) -> Self {
        let mut callers = Self {
            errors: Arc::default(),
            calls: Arc::default(),
            done: Arc::default(),
            is_over: Arc::default(),
            tasks: JoinSet::new(),
        };
        for caller in 0..20 {
            let (client, errors, calls) = (client.clone(), callers.errors.clone(), callers.calls.clone());
            let (done, is_over) = (callers.done.clone(), callers.is_over.clone());
            callers.tasks.spawn(async move {
                let note = |outcome: Result<(), registry_sdk::Error>| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    errors.lock().extend(outcome.err().map(|error| error.to_string()));
                };
                let id = format!("changing-{caller}");
                let mut next = AgentStatus::Busy;
                while !is_over.load(Ordering::Relaxed) {
                    let changed = client.update_status(&id, next).await;
                    if let Ok(record) = &changed {
                        done.lock().insert(record.revision.unwrap(), (id.clone(), next));
                    }
                    note(changed.map(drop));
                    next = if next == AgentStatus::Busy { AgentStatus::Active } else { AgentStatus::Busy };
                    note(client.get_agent(&id).await.map(drop));
                    note(client.search_capabilities("endure").await.map(drop));
                    note(client.check_health("agent-7").await.map(|health| assert!(health.is_healthy())));
                    note(client.heartbeat(&id).await.map(drop));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
        callers
    }

    /// Lets some time pass, and at least ten calls of each caller.
    async fn go_on_for(&self, time: Duration) {
        let enough = self.calls.load(Ordering::Relaxed) + 200;
        tokio::time::sleep(time).await;
        eventually("the callers go on", async || self.calls.load(Ordering::Relaxed) >= enough).await;
    }

    fn report(&self, what: &str) {
        let errors = self.errors.lock().clone();
        println!(
            "{what}: {} calls through the SDK with three URLs, {} errors",
            self.calls.load(Ordering::Relaxed),
            errors.len()
        );
        assert!(errors.is_empty(), "{errors:?}");
    }

    async fn end(mut self) -> std::collections::BTreeMap<u64, (String, AgentStatus)> {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.done.lock())
    }
}

/// What one stream of events told.
#[derive(Default)]
struct Seen {
    began: AtomicBool,
    lists: AtomicU64,
    revisions: Mutex<HashSet<u64>>,
    twice: AtomicU64,
    offline: Mutex<HashSet<String>>,
}

impl Seen {
    fn by(client: &RegistryClient) -> Arc<Self> {
        let seen = Arc::<Self>::default();
        let (mut watch, told) = (client.watch(), seen.clone());
        tokio::spawn(async move {
            while let Some(event) = watch.next().await {
                match event {
                    WatchEvent::Listed(_) => {
                        told.lists.fetch_add(1, Ordering::Relaxed);
                        told.began.store(true, Ordering::Relaxed);
                    }
                    WatchEvent::Registered(agent) | WatchEvent::Deregistered(agent) => {
                        told.note(agent.revision);
                    }
                    WatchEvent::StatusChanged(agent) => {
                        told.note(agent.revision);
                        if agent.status == AgentStatus::Offline {
                            told.offline.lock().insert(agent.agent_id.clone());
                        }
                    }
                    _ => {}
                }
            }
        });
        seen
    }

    fn note(&self, revision: Option<u64>) {
        if !self.revisions.lock().insert(revision.unwrap()) {
            self.twice.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    fn revisions(&self) -> HashSet<u64> {
        self.revisions.lock().clone()
    }
}
