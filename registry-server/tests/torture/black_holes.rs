//! Black holes between servers and PostgreSQL: open connections pass nothing, while new connections work.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::Error;
use registry_sdk::contract::AgentStatus;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::support::{
    DatabaseProxy, Effect, Load, Server, Store, Witnesses, agent, equal_the_database, eventually,
    follow_each_other, is_long, length, recovered, recovery, start_error, within,
};

/// Short, so that servers constantly read deadlines from the database that they cannot confirm from memory.
fn timeout() -> Duration {
    Duration::from_secs(length(6, 2))
}

fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("6s", "2s"), "--sweep-interval", "500ms"]
}

const WITNESSES: usize = 20;

/// Maximum number of a server's connections to its database, whatever happened before.
const MAX_CONNECTIONS: usize = 6;

fn hole() -> Duration {
    Duration::from_secs(length(12, 3))
}

fn shutdown_limit() -> Duration {
    Duration::from_secs(length(10, 40))
}

/// The fate of connections after a black hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterHole {
    /// Held data is delivered, as by retransmissions.
    Resume,
    /// Connections stay open and silent, as if a router had forgotten them.
    StaySilent,
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_recover_from_a_black_hole() {
    outlast_holes(1, AfterHole::Resume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_recover_from_three_black_holes() {
    outlast_holes(3, AfterHole::Resume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_recover_from_a_black_hole_that_kills_connections() {
    outlast_holes(1, AfterHole::StaySilent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_recover_from_three_black_holes_that_kill_connections() {
    outlast_holes(3, AfterHole::StaySilent).await;
}

async fn outlast_holes(number: usize, after: AfterHole) {
    let world = World::start().await;
    let traffic = Traffic::start(&world.servers).await;
    let witnesses = Witnesses::start(&world.servers, WITNESSES, timeout()).await;
    let mut database = world.store.connect().await;
    // After this, each server reads the deadlines of the other's agents from the database.
    tokio::time::sleep(timeout()).await;
    for _ in 0..number {
        for proxy in &world.proxies {
            proxy.silence_present();
        }
        tokio::time::sleep(hole()).await;
        if after == AfterHole::Resume {
            world.resume();
        }
        println!("{after:?}: well again {:.2?} after the hole", recovered(&world.servers).await);
        let enough = witnesses.answered() + 2 * WITNESSES as u64;
        eventually("heartbeats go on", async || witnesses.answered() >= enough).await;
    }
    for (place, proxy) in world.proxies.iter().enumerate() {
        let what = || format!("server {place} listens for changes of the other");
        within(recovery(), what, async || proxy.is_listening()).await;
    }
    traffic.end(&mut database).await;
    witnesses.end().await;
    equal_the_database(&world.servers, &mut database).await;
    follow_each_other(&world.servers).await;
    world.resume();
    few_connections(&world.servers, &mut database).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn black_holes_do_not_delay_a_shutdown() {
    // The second to last is before the end of every timeout, and the last is after it.
    for millis in length(&[0, 500, 1_500, 3_000, 6_000, 11_000][..], &[0, 1_000]) {
        for is_whole in [false, true] {
            let mut world = World::start().await;
            let traffic = Traffic::start(&world.servers).await;
            for proxy in &world.proxies {
                if is_whole { proxy.silence_all() } else { proxy.silence_present() }
            }
            tokio::time::sleep(Duration::from_millis(*millis)).await;
            for server in &mut world.servers {
                let took = server.stop_within(shutdown_limit()).await;
                println!(
                    "{millis} ms after a hole began (new connections, too: {is_whole}): ended after {took:.2?}"
                );
            }
            drop(traffic);
            world.resume();
        }
    }
}

/// Only the connection for notifications dies. Polling hides this, but delays each change by up to half a
/// second.
#[tokio::test(flavor = "multi_thread")]
async fn listening_connection_in_a_black_hole_is_replaced() {
    let world = World::start().await;
    for proxy in &world.proxies {
        eventually("it listens", async || proxy.is_listening()).await;
        proxy.silence_listening();
    }
    for (place, proxy) in world.proxies.iter().enumerate() {
        let what = || format!("server {place} listens again for changes of the other");
        // A dead connection has to be detected before it can be replaced.
        within(2 * recovery(), what, async || proxy.is_listening()).await;
    }
    recovered(&world.servers).await;
    follow_each_other(&world.servers).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_cannot_follow_is_unhealthy() {
    let world = World::start().await;
    let (writer, reader) = (world.servers[0].client(), world.servers[1].client());
    writer.register(&agent("changing", "change")).await.unwrap();
    for _ in 0..length(3, 1) {
        world.proxies[1].silence_all();
        let noticed = eventually("/health says so", async || reader.get_server_health().await.is_err()).await;
        println!("unhealthy {noticed:.2?} after the hole began");
        assert!(!is_long() || noticed < Duration::from_secs(3), "{noticed:?}");
        let until = Instant::now() + hole();
        let mut changes = 0;
        while Instant::now() < until {
            let next = if changes % 2 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
            writer.update_status("changing", next).await.expect("the other server goes on");
            changes += 1;
            assert!(reader.get_server_health().await.is_err(), "healthy, and does not follow");
            let stale = reqwest::get(format!("{}/agents", world.servers[1].url())).await.unwrap();
            assert!(stale.headers().contains_key("Registry-Stale-Seconds"), "{:?}", stale.headers());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        world.resume();
        println!("{changes} changes meanwhile, well again {:.2?} after", recovered(&world.servers).await);
    }
    let mut database = world.store.connect().await;
    equal_the_database(&world.servers, &mut database).await;
    follow_each_other(&world.servers).await;
    world.stop().await;
}

/// One server falls silent while it holds the row that every change needs. The others wait until the database
/// ends its session.
#[tokio::test(flavor = "multi_thread")]
async fn black_hole_after_select_for_update_does_not_block_other_servers() {
    let world = World::start().await;
    let [holder, other] = &world.servers[..] else { unreachable!() };
    for server in [holder, other] {
        server.patient_client().register(&agent("changing", "change")).await.unwrap();
    }
    let mut waits = Vec::new();
    for round in 0..5 {
        let fired = world.proxies[0].fired();
        world.proxies[0].trap_state_lock(Effect::SilentAfter);
        let client = holder.client();
        let id = format!("held-{round}");
        let stuck = tokio::spawn(async move { client.register(&agent(&id, "wait")).await });
        eventually("the row is held", async || world.proxies[0].fired() > fired).await;
        let next = if round % 2 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
        let began = Instant::now();
        let client = other.client();
        let is_done = async || client.update_status("changing", next).await.is_ok();
        eventually("a change of the other server", is_done).await;
        waits.push(began.elapsed());
        match stuck.await.unwrap() {
            Ok(_) | Err(Error::Unavailable { status: 503, .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        world.resume();
        recovered(&world.servers).await;
        // On a machine that may be busy, one fast round is enough.
        if !is_long() && waits[round] < Duration::from_secs(4) {
            break;
        }
    }
    println!("the other server waited {waits:.2?}");
    let longest = waits.iter().max().unwrap();
    assert!(!is_long() || *longest < Duration::from_secs(2), "the other server waited {longest:?}");
    let shortest = waits.iter().min().unwrap();
    assert!(*shortest < Duration::from_secs(4), "the other server never waited less than {shortest:?}");
    equal_the_database(&world.servers, &mut world.store.connect().await).await;
    world.stop().await;
}

/// After a failover, a server loads all agents again. Meanwhile, it does not follow the database.
#[tokio::test(flavor = "multi_thread")]
async fn black_hole_during_a_reload_is_noticed() {
    let world = World::start().await;
    let server = &world.servers[0];
    server.patient_client().register(&agent("known", "work")).await.unwrap();
    world.proxies[0].trap_load(Effect::SilentAfter);
    let began = Instant::now();
    world.store.execute("UPDATE agent_registry_state SET revision = revision + 1, mark = 7").await;
    eventually("the server loads all agents", async || world.proxies[0].fired() > 0).await;
    let client = server.client();
    let works = async || client.register(&agent("new", "work")).await.is_ok();
    within(Duration::from_secs(length(10, 45)), || "the server works again".to_owned(), works).await;
    println!("a reload in a black hole: the server works again after {:.1?}", began.elapsed());
    recovered(&world.servers).await;
    equal_the_database(&world.servers, &mut world.store.connect().await).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn black_hole_during_a_start_ends_the_server() {
    let store = Store::postgres().await;
    let proxy = DatabaseProxy::start(&store.url).await;
    proxy.trap_load(Effect::SilentAfter);
    let (began, limit, flags) = (Instant::now(), Duration::from_secs(length(10, 45)), flags());
    let error = tokio::time::timeout(limit, start_error(proxy.url(), &flags)).await.unwrap();
    println!("a start in a black hole: the server ends after {:.1?}: {error}", began.elapsed());
    assert_eq!(proxy.fired(), 1);
    assert!(error.contains("it has sent nothing for 5s"), "{error}");
}

/// Two servers that share a database, each behind its own proxy.
struct World {
    store: Store,
    proxies: Vec<DatabaseProxy>,
    servers: Vec<Server>,
}

impl World {
    async fn start() -> Self {
        let store = Store::postgres().await;
        let (mut proxies, mut servers) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let proxy = DatabaseProxy::start(&store.url).await;
            servers.push(Server::running(proxy.url(), &flags()).await);
            proxies.push(proxy);
        }
        Self { store, proxies, servers }
    }

    fn resume(&self) {
        for proxy in &self.proxies {
            proxy.resume();
        }
    }

    async fn stop(mut self) {
        for server in &mut self.servers {
            server.stop_within(shutdown_limit()).await;
        }
    }
}

/// Checks that the database ends lost sessions, and that no server keeps more connections than it needs.
async fn few_connections(servers: &[Server], database: &mut PgConnection) {
    let (most, last) = (MAX_CONNECTIONS * servers.len(), Mutex::new(0));
    let database = tokio::sync::Mutex::new(database);
    let few = async || {
        let query = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let count: i64 = sqlx::query_scalar(query).fetch_one(&mut **database.lock().await).await.unwrap();
        *last.lock() = count;
        usize::try_from(count).unwrap() <= most
    };
    within(recovery(), || format!("at most {most} connections, not {}", last.lock()), few).await;
    println!("{} connections of {} servers", last.lock(), servers.len());
}

/// Ordinary load: continuous registrations, and reads.
struct Traffic {
    /// Registrations that were answered with 200.
    registered: Arc<Mutex<HashSet<String>>>,
    senders: JoinSet<()>,
    _reads: Vec<Load>,
}

impl Traffic {
    async fn start(servers: &[Server]) -> Self {
        let (registered, mut senders) = (Arc::<Mutex<HashSet<String>>>::default(), JoinSet::new());
        let mut reads = Vec::new();
        for (place, server) in servers.iter().enumerate() {
            for sender in 0..2 {
                let (client, registered) = (server.client(), registered.clone());
                senders.spawn(async move {
                    for number in 0.. {
                        let id = format!("new-{place}-{sender}-{number}");
                        if client.register(&agent(&id, "come")).await.is_ok() {
                            registered.lock().insert(id);
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                });
            }
            let read = |number: u64| {
                let id = format!("witness-{}", number % WITNESSES as u64);
                let target =
                    if number.is_multiple_of(2) { format!("/agents/{id}") } else { format!("/health/{id}") };
                ("GET", target, String::new())
            };
            reads.push(Load::start(&server.address(), 8, 100.0, read));
        }
        eventually("a registration is answered", async || !registered.lock().is_empty()).await;
        Self { registered, senders, _reads: reads }
    }

    /// Ends the load. Fails if an acknowledged registration is not in the database.
    async fn end(mut self, database: &mut PgConnection) {
        self.senders.shutdown().await;
        let stored: Vec<(String,)> =
            sqlx::query_as("SELECT agent_id FROM agent_registry").fetch_all(database).await.unwrap();
        let stored: HashSet<String> = stored.into_iter().map(|(id,)| id).collect();
        let registered = self.registered.lock();
        let lost: Vec<_> = registered.difference(&stored).collect();
        println!("{} registrations were answered 200, {} of them lost", registered.len(), lost.len());
        assert!(lost.is_empty(), "{lost:?}");
    }
}
