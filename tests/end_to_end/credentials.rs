//! Tokens and the requests that they allow.

use std::fmt::Write;
use std::path::PathBuf;

use registry_sdk::contract::AgentStatus;
use registry_sdk::{Agent, Error, ListQuery, RegistryClient, WatchEvent};
use registry_server::NewToken;
use reqwest::header::WWW_AUTHENTICATE;

use crate::support::{Database, Registry, agent, client, client_builder, on_both_databases};

on_both_databases!(
    token_allows_what_its_scope_says,
    request_without_a_token_is_rejected_and_changes_nothing,
    tokens_are_reloaded_without_a_restart,
    token_may_be_renewed_while_the_client_runs,
);

/// A tokens file.
pub(crate) struct File {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl File {
    /// Writes entries, each given by the lines below its name and digest. Returns the tokens in the same order.
    pub(crate) fn new(entries: &[&str]) -> (Self, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join("tokens.toml"), _folder: folder };
        let tokens = file.write(entries);
        (file, tokens)
    }

    fn write(&self, entries: &[&str]) -> Vec<String> {
        let mut text = String::new();
        let mut tokens = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            let NewToken { token, sha256, .. } = NewToken::generate().unwrap();
            writeln!(text, "[[token]]\nname = \"token {number}\"\nsha256 = \"{sha256}\"\n{entry}").unwrap();
            tokens.push(token);
        }
        std::fs::write(&self.path, text).unwrap();
        tokens
    }
}

async fn start(database: &Database, file: &File) -> Registry {
    database.start_with(|config| config.tokens_file = Some(file.path.clone())).await
}

fn bearer(server: &Registry, token: &str) -> RegistryClient {
    client_builder(server.url()).token(token).build().unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "reads best where the outcome is asked for in place")]
fn is_denied<T>(outcome: Result<T, Error>, expected: u16) -> bool {
    matches!(outcome, Err(Error::Denied { status, .. }) if status == expected)
}

async fn token_allows_what_its_scope_says(database: Database) {
    let (file, tokens) =
        File::new(&["scope = \"read\"", "scope = \"agent\"\nagents = [\"team-a-*\"]", "scope = \"admin\""]);
    let server = start(&database, &file).await;
    let [reader, team, admin] = [0, 1, 2].map(|number| bearer(&server, &tokens[number]));
    admin.register(&agent("other", "work")).await.unwrap();
    team.register(&agent("team-a-1", "work")).await.unwrap();

    for client in [&reader, &team, &admin] {
        assert_eq!(client.list_agents(ListQuery::all()).await.unwrap().agents.len(), 2);
        client.get_agent("other").await.unwrap();
        client.check_health("other").await.unwrap();
        client.search_capabilities("work").await.unwrap();
        client.get_stats().await.unwrap();
        let mut watch = client.watch();
        assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));
    }
    for (client, id) in [(&reader, "team-a-1"), (&team, "other")] {
        assert!(is_denied(client.register(&agent(id, "theft")).await, 403));
        assert!(is_denied(client.heartbeat(id).await, 403));
        assert!(is_denied(client.update_status(id, AgentStatus::Offline).await, 403));
        assert!(is_denied(client.deregister(id).await, 403));
        let record = admin.get_agent(id).await.unwrap();
        assert_eq!((record.status, record.capabilities[0].name.as_str()), (AgentStatus::Active, "work"));
    }
    for (client, id) in [(&team, "team-a-1"), (&admin, "other")] {
        client.heartbeat(id).await.unwrap();
        client.update_status(id, AgentStatus::Busy).await.unwrap();
        client.deregister(id).await.unwrap();
    }
    server.shutdown().await;
}

async fn request_without_a_token_is_rejected_and_changes_nothing(database: Database) {
    let (file, tokens) =
        File::new(&["scope = \"admin\"", "scope = \"admin\"\nexpires = 2020-01-01T00:00:00Z"]);
    let server = start(&database, &file).await;
    let nobody = client(&server);
    let clients =
        [nobody.clone(), bearer(&server, "agreg_wrong"), bearer(&server, ""), bearer(&server, &tokens[1])];
    for client in clients {
        assert!(is_denied(client.register(&agent("a", "work")).await, 401));
        assert!(is_denied(client.list_agents(ListQuery::all()).await, 401));
        let registering = Agent::new(client.clone(), agent("a", "work")).register_with_retry().await;
        assert!(is_denied(registering, 401), "the agent does not retry");
        let mut watch = client.watch();
        assert!(matches!(
            watch.next().await,
            Some(WatchEvent::Interrupted(Error::Denied { status: 401, .. }))
        ));
    }
    let http = reqwest::Client::new();
    for path in ["agents", "agents/a", "stats", "events", "metrics", "no/such/path"] {
        for credentials in [None, Some("Basic YTpi"), Some("Bearer")] {
            let mut request = http.get(format!("{}/{path}", server.url()));
            if let Some(credentials) = credentials {
                request = request.header("authorization", credentials);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()[WWW_AUTHENTICATE] == "Bearer"),
                (401, true),
                "{path}"
            );
        }
    }
    // Health checks need no token, since load balancers have none.
    nobody.get_server_health().await.unwrap();
    assert!(bearer(&server, &tokens[0]).list_agents(ListQuery::all()).await.unwrap().agents.is_empty());
    server.shutdown().await;
}

async fn tokens_are_reloaded_without_a_restart(database: Database) {
    let (file, before) = File::new(&["scope = \"admin\""]);
    let registry = start(&database, &file).await;
    let Registry::Server(server) = &registry else { unreachable!("a database has a server") };
    let old = bearer(&registry, &before[0]);
    old.register(&agent("a", "work")).await.unwrap();

    let mut watch = old.watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));

    let after = file.write(&["scope = \"read\""]);
    server.reload().unwrap();
    assert!(is_denied(old.heartbeat("a").await, 401));
    // Event streams are checked again as well.
    assert!(matches!(watch.next().await, Some(WatchEvent::Interrupted(Error::Denied { status: 401, .. }))));
    let new = bearer(&registry, &after[0]);
    new.get_agent("a").await.unwrap();

    // An invalid file changes nothing.
    std::fs::write(&file.path, "[[token]]\nname = \"x\"").unwrap();
    assert!(server.reload().unwrap_err().to_string().contains("missing field"));
    std::fs::remove_file(&file.path).unwrap();
    assert!(server.reload().is_err());
    new.get_agent("a").await.unwrap();
    registry.shutdown().await;
}

async fn token_may_be_renewed_while_the_client_runs(database: Database) {
    let (file, tokens) = File::new(&["scope = \"admin\"", "scope = \"admin\""]);
    let registry = start(&database, &file).await;
    let present = std::sync::Arc::new(std::sync::Mutex::new("agreg_not_yet".to_owned()));
    let shared = present.clone();
    let client = client_builder(registry.url())
        .token_provider(move || shared.lock().unwrap().clone())
        .build()
        .unwrap();
    assert!(is_denied(client.get_stats().await, 401));
    for token in tokens {
        present.lock().unwrap().clone_from(&token);
        client.get_stats().await.unwrap();
        // The token is not in any debug output.
        assert!(!format!("{client:?}").contains(&token));
    }
    "a\nb".clone_into(&mut present.lock().unwrap());
    assert!(matches!(client.get_stats().await, Err(Error::Config(_))));
    registry.shutdown().await;
}
