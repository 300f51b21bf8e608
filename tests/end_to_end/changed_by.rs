//! Records and events name the token whose request made the agent's last change.

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{AgentRecord, AgentStatus, CHANGED_BY_REGISTRY, MaintenanceRequest};
use registry_sdk::{RegistryClient, Watch, WatchEvent};
use registry_server::Config;
use tokio::time::timeout;

use crate::credentials::File;
use crate::support::{
    Database, LONG, NEVER, Registry, agent, client, client_builder, eventually, on_both_databases,
    on_postgres,
};

on_both_databases!(
    records_and_events_name_the_token_of_the_last_change,
    changes_by_the_registry_have_its_name,
    server_without_tokens_records_no_names,
    changes_by_another_program_have_the_registrys_name,
    name_survives_a_restart_until_an_older_server_changes_the_row,
);

mod replicas {
    use super::*;

    on_postgres!(replicas_agree, change_by_an_older_server_hides_the_name);
}

const OWNER: &str = "token 0";
const OPERATOR: &str = "token 1";

/// The tokens of an agent's owner and of an operator.
struct Tokens {
    file: File,
    tokens: Vec<String>,
}

impl Tokens {
    fn new() -> Self {
        let (file, tokens) = File::new(&["scope = \"agent\"\nagents = [\"a\"]", "scope = \"admin\""]);
        Self { file, tokens }
    }

    async fn start(&self, database: &Database) -> Registry {
        self.start_with(database, |_| {}).await
    }

    async fn start_with(&self, database: &Database, change: impl FnOnce(&mut Config)) -> Registry {
        let change = |config: &mut Config| {
            config.tokens_file = Some(self.file.path.clone());
            change(config);
        };
        database.start_with(change).await
    }

    /// Returns clients with the tokens of the owner and the operator.
    fn clients(&self, server: &Registry) -> [RegistryClient; 2] {
        [0, 1].map(|number: usize| client_builder(server.url()).token(&*self.tokens[number]).build().unwrap())
    }
}

/// Starts a watch, and waits for its list.
async fn watch(client: &RegistryClient) -> Watch {
    let mut watch = client.watch();
    assert!(matches!(timeout(LONG, watch.next()).await.unwrap(), Some(WatchEvent::Listed(_))));
    watch
}

/// Returns the next change and its kind.
async fn next(watch: &mut Watch) -> (&'static str, Arc<AgentRecord>) {
    match timeout(LONG, watch.next()).await.expect("an event").expect("the watch continues") {
        WatchEvent::Registered(agent) => ("registered", agent),
        WatchEvent::StatusChanged(agent) => ("status_changed", agent),
        WatchEvent::Deregistered(agent) => ("deregistered", agent),
        other => panic!("{other:?}"),
    }
}

/// Returns the kind of the next change, and the name of the token that made it.
async fn next_name(watch: &mut Watch) -> (&'static str, Option<String>) {
    let (kind, agent) = next(watch).await;
    (kind, agent.changed_by.clone())
}

async fn name(client: &RegistryClient) -> Option<String> {
    client.get_agent("a").await.unwrap().changed_by
}

async fn records_and_events_name_the_token_of_the_last_change(database: Database) {
    let tokens = Tokens::new();
    let server = tokens.start(&database).await;
    let [owner, operator] = tokens.clients(&server);
    let mut watch = watch(&operator).await;
    let registered = owner.register(&agent("a", "work")).await.unwrap();
    assert_eq!(registered.changed_by, Some(OWNER.to_owned()));
    // Neither a repeated registration nor a heartbeat is a change.
    let again = operator.register(&agent("a", "work")).await.unwrap();
    assert_eq!((again.revision, again.changed_by), (registered.revision, Some(OWNER.to_owned())));
    operator.heartbeat("a").await.unwrap();
    assert_eq!(name(&owner).await, Some(OWNER.to_owned()));

    let set = operator.set_maintenance("a", &MaintenanceRequest::new("upgrade")).await.unwrap();
    assert_eq!(
        (&set.changed_by, set.registration_tag),
        (&Some(OPERATOR.to_owned()), registered.registration_tag)
    );
    owner.heartbeat("a").await.unwrap();
    owner.register(&agent("a", "work")).await.unwrap();
    assert_eq!(name(&owner).await, Some(OPERATOR.to_owned()));
    let listed = owner.list_agents(registry_sdk::ListQuery::all()).await.unwrap().agents;
    assert_eq!(listed[0].changed_by, Some(OPERATOR.to_owned()));

    assert_eq!(owner.update_status("a", AgentStatus::Busy).await.unwrap().changed_by, Some(OWNER.to_owned()));
    assert_eq!(
        operator.update_status("a", AgentStatus::Busy).await.unwrap().changed_by,
        Some(OWNER.to_owned())
    );
    assert_eq!(operator.end_maintenance("a").await.unwrap().changed_by, Some(OPERATOR.to_owned()));
    assert_eq!(owner.end_maintenance("a").await.unwrap().changed_by, Some(OPERATOR.to_owned()));
    assert_eq!(
        owner.update_status("a", AgentStatus::Offline).await.unwrap().changed_by,
        Some(OWNER.to_owned())
    );
    // The agent registers again.
    operator.heartbeat("a").await.unwrap();
    assert_eq!(name(&owner).await, Some(OPERATOR.to_owned()));
    owner.register(&agent("a", "more work")).await.unwrap();
    operator.deregister("a").await.unwrap();
    for (kind, expected) in [
        ("registered", OWNER),
        ("status_changed", OPERATOR),
        ("status_changed", OWNER),
        ("status_changed", OPERATOR),
        ("status_changed", OWNER),
        ("status_changed", OPERATOR),
        ("registered", OWNER),
        ("deregistered", OPERATOR),
    ] {
        assert_eq!(next_name(&mut watch).await, (kind, Some(expected.to_owned())));
    }
    server.shutdown().await;
}

async fn changes_by_the_registry_have_its_name(database: Database) {
    let tokens = Tokens::new();
    let server = tokens.start(&database).await;
    let [owner, operator] = tokens.clients(&server);
    owner.register(&agent("a", "work")).await.unwrap();
    let mut events = watch(&operator).await;
    let short = MaintenanceRequest::new("upgrade").duration(Duration::from_millis(500));
    operator.set_maintenance("a", &short).await.unwrap();
    assert_eq!(next_name(&mut events).await, ("status_changed", Some(OPERATOR.to_owned())));
    assert_eq!(next_name(&mut events).await, ("status_changed", Some(CHANGED_BY_REGISTRY.to_owned())));
    assert_eq!(name(&operator).await, Some(CHANGED_BY_REGISTRY.to_owned()));
    server.shutdown().await;

    // The agent misses its deadline and is removed later.
    let server = tokens
        .start_with(&database, |config| {
            config.heartbeat_timeout = Duration::from_secs(1);
            config.remove_after = Some(Duration::from_secs(1));
        })
        .await;
    let [_, operator] = tokens.clients(&server);
    let mut events = watch(&operator).await;
    operator.register(&agent("b", "work")).await.unwrap();
    let mut of_b = Vec::new();
    while of_b.last().is_none_or(|(kind, _)| *kind != "deregistered") {
        let (kind, agent) = next(&mut events).await;
        if agent.agent_id == "b" {
            of_b.push((kind, agent.changed_by.clone()));
        }
    }
    let expected = [
        ("registered", Some(OPERATOR.to_owned())),
        ("status_changed", Some(CHANGED_BY_REGISTRY.to_owned())),
        ("deregistered", Some(CHANGED_BY_REGISTRY.to_owned())),
    ];
    assert_eq!(of_b, expected);
    server.shutdown().await;
}

async fn server_without_tokens_records_no_names(database: Database) {
    let tokens = Tokens::new();
    let server = tokens.start(&database).await;
    let [owner, _] = tokens.clients(&server);
    owner.register(&agent("a", "work")).await.unwrap();
    server.shutdown().await;

    let server = database.start().await;
    let client = client(&server);
    let mut watch = watch(&client).await;
    assert_eq!(name(&client).await, Some(OWNER.to_owned()));
    assert_eq!(client.update_status("a", AgentStatus::Busy).await.unwrap().changed_by, None);
    let set = client.set_maintenance("a", &MaintenanceRequest::new("upgrade")).await.unwrap();
    assert_eq!(set.changed_by, None);
    client.deregister("a").await.unwrap();
    for kind in ["status_changed", "status_changed", "deregistered"] {
        assert_eq!(next_name(&mut watch).await, (kind, None));
    }
    server.shutdown().await;
}

async fn changes_by_another_program_have_the_registrys_name(database: Database) {
    let tokens = Tokens::new();
    let server = tokens.start(&database).await;
    let [owner, operator] = tokens.clients(&server);
    owner.register(&agent("a", "work")).await.unwrap();
    let mut watch = watch(&owner).await;
    // Every change of an agent compares its row. This one changes nothing itself.
    let look = async || operator.update_status("a", AgentStatus::Active).await.unwrap();
    database.execute("UPDATE agent_registry SET agent_name = 'Edited'").await;
    assert_eq!(look().await.changed_by, Some(CHANGED_BY_REGISTRY.to_owned()));
    assert_eq!(next_name(&mut watch).await, ("registered", Some(CHANGED_BY_REGISTRY.to_owned())));

    owner.update_status("a", AgentStatus::Busy).await.unwrap();
    database.execute("UPDATE agent_registry SET status = 'active', changed_by = 'forged'").await;
    assert_eq!(look().await.changed_by, Some(CHANGED_BY_REGISTRY.to_owned()));
    assert_eq!(next_name(&mut watch).await, ("status_changed", Some(OWNER.to_owned())));
    assert_eq!(next_name(&mut watch).await, ("status_changed", Some(CHANGED_BY_REGISTRY.to_owned())));

    database.execute("DELETE FROM agent_registry").await;
    assert!(operator.update_status("a", AgentStatus::Active).await.is_err());
    assert_eq!(next_name(&mut watch).await, ("deregistered", Some(CHANGED_BY_REGISTRY.to_owned())));
    server.shutdown().await;
}

async fn name_survives_a_restart_until_an_older_server_changes_the_row(database: Database) {
    let tokens = Tokens::new();
    let server = tokens.start(&database).await;
    let registered = tokens.clients(&server)[0].register(&agent("a", "work")).await.unwrap();
    server.shutdown().await;
    let server = tokens.start(&database).await;
    let [owner, _] = tokens.clients(&server);
    let kept = owner.get_agent("a").await.unwrap();
    assert_eq!((kept.changed_by, kept.revision), (Some(OWNER.to_owned()), registered.revision));
    server.shutdown().await;

    // A downgrade: an older server does not write columns that it does not know.
    database.execute("UPDATE agent_registry_state SET revision = revision + 1, mark = 7").await;
    database
        .execute(
            "UPDATE agent_registry
             SET status = 'busy', revision = (SELECT revision FROM agent_registry_state) WHERE agent_id = 'a'",
        )
        .await;
    let server = tokens.start(&database).await;
    let [owner, _] = tokens.clients(&server);
    let changed = owner.get_agent("a").await.unwrap();
    assert_eq!((changed.status, changed.changed_by), (AgentStatus::Busy, None));
    assert_eq!(
        owner.update_status("a", AgentStatus::Active).await.unwrap().changed_by,
        Some(OWNER.to_owned())
    );
    server.shutdown().await;
}

async fn replicas_agree(database: Database) {
    let tokens = Tokens::new();
    let (one, two) = (tokens.start(&database).await, tokens.start(&database).await);
    let ([owner, _], [_, operator]) = (tokens.clients(&one), tokens.clients(&two));
    let mut watch = watch(&operator).await;
    let registered = owner.register(&agent("a", "work")).await.unwrap();
    assert_eq!(next_name(&mut watch).await, ("registered", Some(OWNER.to_owned())));
    assert_eq!(operator.get_agent("a").await.unwrap(), registered);
    let set =
        operator.set_maintenance("a", &MaintenanceRequest::new("upgrade").duration(NEVER)).await.unwrap();
    eventually("the other server shows the maintenance", async || owner.get_agent("a").await.unwrap() == set)
        .await;
    assert_eq!(set.changed_by, Some(OPERATOR.to_owned()));
    owner.deregister("a").await.unwrap();
    assert_eq!(next_name(&mut watch).await, ("status_changed", Some(OPERATOR.to_owned())));
    assert_eq!(next_name(&mut watch).await, ("deregistered", Some(OWNER.to_owned())));
    one.shutdown().await;
    two.shutdown().await;
}

/// A rolling upgrade.
async fn change_by_an_older_server_hides_the_name(database: Database) {
    let tokens = Tokens::new();
    let server = tokens.start(&database).await;
    let [owner, _] = tokens.clients(&server);
    owner.register(&agent("a", "work")).await.unwrap();
    let mut watch = watch(&owner).await;
    database.make_busy_as_an_older_server().await;
    assert_eq!(next_name(&mut watch).await, ("status_changed", None));
    let shown = owner.get_agent("a").await.unwrap();
    assert_eq!((shown.status, shown.changed_by), (AgentStatus::Busy, None));
    // The row equals the event, so there is no edit to adopt.
    let looked = owner.update_status("a", AgentStatus::Busy).await.unwrap();
    assert_eq!((looked.revision, looked.changed_by), (shown.revision, None));
    server.shutdown().await;
}
