//! Lost `COMMIT`s and lost responses: what was committed must be reported as done, and everything else as not
//! done.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{Error, RegistryClient};
use serde_json::Value;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::support::{
    DatabaseProxy, Effect, Server, Store, agent, equal_the_database, eventually, length, recovered,
};

#[tokio::test(flavor = "multi_thread")]
async fn outcome_is_correct_if_the_response_to_commit_is_cut() {
    lose(Effect::CutAfter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcome_is_correct_if_the_response_to_commit_never_arrives() {
    lose(Effect::SilentAfter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcome_is_correct_if_the_commit_is_cut() {
    lose(Effect::CutBefore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcome_is_correct_if_the_commit_never_arrives() {
    lose(Effect::SilentBefore).await;
}

/// Changes whose `COMMIT` is lost.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Register,
    /// Registration with another capability than before.
    RegisterAgain,
    SetStatus,
    Deregister,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Register, Self::RegisterAgain, Self::SetStatus, Self::Deregister];

    async fn prepare(self, client: &RegistryClient, id: &str) {
        if !matches!(self, Self::Register) {
            client.register(&agent(id, "before")).await.unwrap();
        }
    }

    async fn execute(self, client: &RegistryClient, id: &str) -> Result<(), Error> {
        match self {
            Self::Register | Self::RegisterAgain => client.register(&agent(id, "after")).await.map(drop),
            Self::SetStatus => client.update_status(id, AgentStatus::Busy).await.map(drop),
            Self::Deregister => client.deregister(id).await,
        }
    }

    /// Whether the operation was applied, according to the database.
    async fn is_done(self, database: &mut PgConnection, id: &str) -> bool {
        let query = "SELECT status, capabilities::text FROM agent_registry WHERE agent_id = $1";
        let row: Option<(String, String)> =
            sqlx::query_as(query).bind(id).fetch_optional(database).await.unwrap();
        match self {
            Self::Register | Self::RegisterAgain => {
                row.is_some_and(|(_, capabilities)| capabilities.contains("after"))
            }
            Self::SetStatus => row.is_some_and(|(status, _)| status == "busy"),
            Self::Deregister => row.is_none(),
        }
    }

    fn event(self) -> &'static str {
        match self {
            Self::Register | Self::RegisterAgain => "registered",
            Self::SetStatus => "status_changed",
            Self::Deregister => "deregistered",
        }
    }
}

async fn lose(effect: Effect) {
    let store = Store::postgres().await;
    let proxy = DatabaseProxy::start(&store.url).await;
    let servers = [Server::running(proxy.url(), &[]).await, Server::running(&store.url, &[]).await];
    let streams = join_all(servers.iter().map(Stream::open)).await;
    let database = store.connect().await;
    let mut world = World { effect, proxy, database, servers, streams, failures: Vec::new() };
    for round in 0..length(10, 1) {
        for operation in Operation::ALL {
            // Alone, and together with others in one transaction.
            for &number in length(&[1, 8][..], &[3]) {
                world.lose_one(operation, number, round).await;
            }
        }
    }
    let World { proxy, mut database, servers, failures, .. } = world;
    assert!(failures.is_empty(), "{effect:?}: {failures:#?}");
    equal_the_database(&servers, &mut database).await;
    proxy.resume();
    for mut server in servers {
        server.stop().await;
    }
}

struct World {
    effect: Effect,
    proxy: DatabaseProxy,
    database: PgConnection,
    /// The first server uses the proxy.
    servers: [Server; 2],
    streams: Vec<Stream>,
    failures: Vec<String>,
}

impl World {
    /// Sends concurrent requests, of which at least one loses its `COMMIT`, and checks the responses.
    async fn lose_one(&mut self, operation: Operation, number: usize, round: usize) {
        let (client, patient) = (self.servers[0].client(), self.servers[0].patient_client());
        let ids: Vec<String> =
            (0..number).map(|of| format!("{operation:?}-{number}-{round}-{of}").to_lowercase()).collect();
        for id in &ids {
            operation.prepare(&patient, id).await;
        }
        let before = self.count(&patient, &ids, operation).await;
        let fired = self.proxy.fired();
        self.proxy.trap_commit(self.effect);
        let outcomes = join_all(ids.iter().map(|id| operation.execute(&client, id))).await;
        eventually("a COMMIT is lost", async || self.proxy.fired() > fired).await;
        let answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        println!("{:?}, {operation:?}: {answered} of {number} answered as done; {refused:?}", self.effect);
        recovered(&self.servers).await;

        let after = self.count(&patient, &ids, operation).await;
        for (id, outcome) in ids.iter().zip(&outcomes) {
            let is_done = operation.is_done(&mut self.database, id).await;
            let events: Vec<_> =
                before.iter().zip(&after).map(|(before, after)| after[id] - before[id]).collect();
            if !self.is_true(outcome, is_done) || events.iter().any(|count| *count != usize::from(is_done)) {
                self.failures.push(format!("{id}: done: {is_done}, events: {events:?}, answer: {outcome:?}"));
            }
        }
    }

    fn is_true(&self, outcome: &Result<(), Error>, is_done: bool) -> bool {
        match outcome {
            Ok(()) => is_done,
            Err(Error::Unavailable { status: 503, detail, .. }) => {
                // A `COMMIT` that never reached the database can always be ruled out.
                let may_be_unknown = matches!(self.effect, Effect::CutAfter | Effect::SilentAfter);
                let is_unknown = may_be_unknown && detail.contains("may have been");
                is_unknown || (!is_done && detail.contains("nothing was changed"))
            }
            Err(_) => false,
        }
    }

    /// Returns how many events of the operation each stream has sent for each agent, after reading everything
    /// so far.
    async fn count(
        &self,
        client: &RegistryClient,
        ids: &[String],
        operation: Operation,
    ) -> Vec<HashMap<String, usize>> {
        let marker = format!("marker-{:x}", fastrand::u64(..));
        client.register(&agent(&marker, "mark")).await.unwrap();
        let mut counts = Vec::new();
        for stream in &self.streams {
            eventually("a stream tells of the marker", async || stream.has("registered", &marker) > 0).await;
            assert_eq!(stream.resets(), 0, "nothing was missed that would need it");
            counts.push(ids.iter().map(|id| (id.clone(), stream.has(operation.event(), id))).collect());
        }
        counts
    }
}

/// The raw event stream of a server: kinds and agents.
struct Stream {
    events: Arc<Mutex<Vec<(String, String)>>>,
    _reader: JoinSet<()>,
}

impl Stream {
    async fn open(server: &Server) -> Self {
        let mut response = reqwest::get(format!("{}/events", server.url())).await.unwrap();
        // The stream begins with an id without an event.
        let mut text = Vec::new();
        while !text.ends_with(b"\n\n") {
            text.extend_from_slice(&response.chunk().await.unwrap().unwrap());
        }
        let (events, mut reader) = (Arc::<Mutex<Vec<_>>>::default(), JoinSet::new());
        let told = events.clone();
        reader.spawn(async move {
            while let Ok(Some(chunk)) = response.chunk().await {
                text.extend_from_slice(&chunk);
                while let Some(end) = text.windows(2).position(|end| end == b"\n\n") {
                    let block: Vec<u8> = text.drain(..end + 2).collect();
                    told.lock().extend(event(std::str::from_utf8(&block).unwrap()));
                }
            }
        });
        Self { events, _reader: reader }
    }

    fn has(&self, kind: &str, id: &str) -> usize {
        self.events.lock().iter().filter(|event| (event.0.as_str(), event.1.as_str()) == (kind, id)).count()
    }

    fn resets(&self) -> usize {
        self.events.lock().iter().filter(|(kind, _)| kind == "reset").count()
    }
}

fn event(block: &str) -> Option<(String, String)> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let data: Value = serde_json::from_str(field("data: ")?).unwrap();
    let id = data["agent_id"].as_str().unwrap_or_default().to_owned();
    Some((field("event: ")?.to_owned(), id))
}
