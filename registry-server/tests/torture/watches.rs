//! Watches over replicas that lag, and over databases that fail over or are restored. In the end, every watch
//! is correct.

use std::collections::BTreeMap;
use std::time::Duration;

use registry_sdk::contract::AgentStatus::{Active, Busy};
use registry_sdk::discovery::{Directory, DirectoryState};
use registry_sdk::{ListQuery, RegistryClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Cluster, Server, Switch, agent, client, settled};

/// Directories on each of two servers, some from before the fault, and some from during it.
struct Directories<'a> {
    servers: &'a [Server],
    directories: Vec<Directory>,
}

impl<'a> Directories<'a> {
    fn new(servers: &'a [Server]) -> Self {
        Self { servers, directories: Vec::new() }
    }

    /// Starts a directory on each server.
    async fn follow(&mut self) {
        for server in self.servers {
            // As a user would, with all default timeouts.
            let directory = Directory::follow(&RegistryClient::new(server.url()).unwrap());
            directory.ready().await.unwrap();
            self.directories.push(directory);
        }
    }

    /// Waits until all directories match a server that has just answered a write.
    async fn know_the_truth(&self, server: &Server) {
        let took = settled("the directories equal the registry", async || {
            let truth = truth(server).await;
            for (number, directory) in self.directories.iter().enumerate() {
                knows(directory, &truth).map_err(|found| format!("directory {number}: {found}"))?;
            }
            Ok(())
        })
        .await;
        println!("the directories equal the registry after {took:.2?}");
    }
}

/// Revisions of agents, by id.
type Revisions = BTreeMap<String, Option<u64>>;

async fn truth(server: &Server) -> Revisions {
    let page = server.client().list_agents(ListQuery::all()).await.unwrap();
    page.agents.into_iter().map(|agent| (agent.agent_id, agent.revision)).collect()
}

fn knows(directory: &Directory, truth: &Revisions) -> Result<(), String> {
    let known: Revisions =
        directory.agents().iter().map(|agent| (agent.agent_id.clone(), agent.revision)).collect();
    if known != *truth {
        return Err(format!("{known:?} in place of {truth:?}"));
    }
    match directory.state() {
        DirectoryState::Following => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

async fn two_servers(database_url: &str) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(database_url, &[]).await);
    }
    servers
}

async fn register(server: &Server, ids: impl IntoIterator<Item = String>) {
    for id in ids {
        server.patient_client().register(&agent(&id, "endure")).await.unwrap();
    }
}

fn ids(name: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{name}-{number}"))
}

/// Adds agents to the new history, with no more changes than were lost, so that only the ids of events
/// differ.
async fn change_the_new_history(server: &Server) {
    register(server, ids("new", 2)).await;
    let client = server.patient_client();
    client.update_status("kept-0", Active).await.unwrap();
    client.update_status("kept-1", Busy).await.unwrap();
}

/// A standby that lacks the last changes is promoted.
#[tokio::test(flavor = "multi_thread")]
async fn watches_follow_a_promoted_standby_that_lacked_changes() {
    let Some(primary) = Cluster::start(&[]).await else { return };
    let switch = Switch::to(primary.port()).await;
    let servers = two_servers(&switch.database_url()).await;
    register(&servers[0], ids("kept", 3)).await;
    let standby = primary.standby().await;
    let mut directories = Directories::new(&servers);
    directories.follow().await;
    directories.know_the_truth(&servers[0]).await;
    standby.stop_receiving().await;
    register(&servers[1], ids("lost", 5)).await;
    servers[0].patient_client().update_status("kept-0", Busy).await.unwrap();
    directories.know_the_truth(&servers[0]).await;

    primary.kill();
    standby.promote().await;
    switch.switch_to(standby.port());
    change_the_new_history(&servers[0]).await;
    directories.follow().await;
    directories.know_the_truth(&servers[0]).await;
    let known = truth(&servers[0]).await;
    assert_eq!(
        known.keys().map(String::as_str).collect::<Vec<_>>(),
        ["kept-0", "kept-1", "kept-2", "new-0", "new-1"]
    );
    register(&servers[1], ids("later", 2)).await;
    directories.know_the_truth(&servers[1]).await;
}

/// The database is restored from a copy that lacks the last changes.
#[tokio::test(flavor = "multi_thread")]
async fn watches_follow_a_restored_database() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let switch = Switch::to(cluster.port()).await;
    let servers = two_servers(&switch.database_url()).await;
    register(&servers[0], ids("kept", 3)).await;
    cluster.stop().await;
    cluster.back_up();
    cluster.begin().await;
    let mut directories = Directories::new(&servers);
    register(&servers[1], ids("lost", 5)).await;
    directories.follow().await;
    servers[0].patient_client().update_status("kept-0", Busy).await.unwrap();
    directories.know_the_truth(&servers[0]).await;

    switch.close();
    cluster.stop().await;
    cluster.restore();
    cluster.begin().await;
    switch.switch_to(cluster.port());
    change_the_new_history(&servers[0]).await;
    directories.know_the_truth(&servers[0]).await;
    assert_eq!(truth(&servers[0]).await.len(), 5);
    register(&servers[1], ids("later", 2)).await;
    directories.know_the_truth(&servers[1]).await;
}

/// Two servers share one address, as behind a load balancer: one serves event streams, and the other, whose
/// database hangs, serves everything else.
#[tokio::test(flavor = "multi_thread")]
async fn watch_misses_nothing_if_its_list_comes_from_a_lagging_replica() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let switch = Switch::to(cluster.port()).await;
    let (ahead, lagging) =
        (Server::running(&cluster.url(), &[]).await, Server::running(&switch.database_url(), &[]).await);
    register(&ahead, ids("before", 3)).await;
    let before = truth(&ahead).await;
    settled("the replica follows", async || {
        let shown = truth(&lagging).await;
        if shown == before { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;
    switch.hang();
    register(&ahead, ids("missing", 3)).await;
    ahead.patient_client().deregister("before-0").await.unwrap();
    let (port, _balancer) = balance(ahead.address(), lagging.address()).await;
    let directory = Directory::follow(&client(&format!("http://127.0.0.1:{port}")));
    directory.ready().await.unwrap();
    assert_eq!(directory.len(), 3, "the first list lags");
    // Nothing changes any more, so the stream has no further events.
    switch.switch_to(cluster.port());
    let truth = truth(&ahead).await;
    let took = settled("it knows what the list lacked", async || knows(&directory, &truth)).await;
    println!("it knows what the list lacked after {took:.2?}");
}

/// Forwards requests for event streams to one server, and all others to another one.
async fn balance(streams: String, others: String) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.spawn(pass(connection, streams.clone(), others.clone()));
        }
    });
    (port, tasks)
}

/// Forwards a single request per connection, since the next one may go to the other server.
async fn pass(mut client: TcpStream, streams: String, others: String) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let server = if head.starts_with(b"GET /events") { streams } else { others };
    let mut server = TcpStream::connect(server).await.ok()?;
    let head = String::from_utf8(head).ok()?.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    server.write_all(head.as_bytes()).await.ok()?;
    tokio::time::timeout(Duration::from_secs(600), copy_bidirectional(&mut client, &mut server))
        .await
        .ok()?
        .ok()?;
    Some(())
}
