//! A role that owns the tables, and another one that only uses them.

use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, WatchEvent};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{
    Cluster, Server, Store, agent, equal_the_database, eventually, follow_each_other, length, run_program,
    start_error,
};

/// The guide for operators, so that the tests run its commands.
const GUIDE: &str = include_str!("../../../../docs/postgresql.md");

/// Returns the SQL statements of the guide's block that begins with a comment.
fn statements(comment: &str) -> Vec<String> {
    let (_, block) = GUIDE.split_once(comment).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block.split(';').map(str::trim).filter(|sql| !sql.is_empty()).map(str::to_owned).collect()
}

async fn execute(connection: &mut PgConnection, comment: &str) {
    for statement in statements(comment) {
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }
}

/// Flags with which a server uses all of its features soon.
fn flags() -> [&'static str; 8] {
    let timeout = length("6s", "1h");
    let probe = "1s";
    [
        "--migrate",
        "never",
        "--heartbeat-timeout",
        timeout,
        "--sweep-interval",
        "500ms",
        "--probe-interval",
        probe,
    ]
}

struct Roles {
    cluster: Cluster,
    owner: String,
    user: String,
}

impl Roles {
    async fn new() -> Option<Self> {
        let cluster = Cluster::start(&[]).await?;
        execute(&mut cluster.connect().await.unwrap(), "-- as a superuser, once").await;
        let url = |role: &str| {
            cluster.url().replace("registry@", &format!("{role}@")).replace("/postgres", "/agents")
        };
        let (owner, user) = (url("agents_owner"), url("agents_server"));
        Some(Self { cluster, owner, user })
    }

    async fn migrate(&self) {
        let (is_well, said) = run_program(&["migrate", "--database-url", &self.owner]).await;
        assert!(is_well, "{said}");
    }

    async fn grant(&self) {
        let mut owner = PgConnection::connect(&self.owner).await.unwrap();
        execute(&mut owner, "-- as agents_owner, after each migration").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_needs_no_right_to_create_tables() {
    let Some(roles) = Roles::new().await else { return };
    let error = start_error(&roles.user, &["--migrate", "never"]).await;
    assert!(error.contains("run registry-server migrate"), "{error}");
    let error = start_error(&roles.user, &[]).await;
    assert!(error.contains("permission denied") && error.contains("registry-server migrate"), "{error}");
    roles.migrate().await;
    let error = start_error(&roles.user, &["--migrate", "never"]).await;
    assert!(error.contains("permission denied"), "{error}");
    roles.grant().await;
    roles.migrate().await;
    let mut user = PgConnection::connect(&roles.user).await.unwrap();
    assert!(user.execute("CREATE TABLE mine ()").await.is_err(), "the role may create tables");

    let servers =
        [Server::running(&roles.user, &flags()).await, Server::running(&roles.user, &flags()).await];
    let mut watch = servers[1].client().watch();
    assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.is_empty()));
    let client = servers[0].patient_client();
    client.register(&agent("a", "work")).await.unwrap();
    assert!(matches!(watch.next().await, Some(WatchEvent::Registered(record)) if record.agent_id == "a"));
    for server in &servers {
        server.patient_client().heartbeat("a").await.unwrap();
    }
    client.update_status("a", AgentStatus::Busy).await.unwrap();
    follow_each_other(&servers).await;
    // Probes need the lease, and the agents' loads need broadcasts.
    let mut owner = PgConnection::connect(&roles.owner).await.unwrap();
    eventually("a server has the lease for probes", async || {
        let leases = "SELECT count(*) FROM agent_registry_lease WHERE until > now()";
        let mut owner = PgConnection::connect(&roles.owner).await.unwrap();
        sqlx::query_scalar::<_, i64>(leases).fetch_one(&mut owner).await.unwrap() > 0
    })
    .await;
    client.deregister("a").await.unwrap();
    equal_the_database(&servers, &mut owner).await;
    if length(true, false) {
        owner
            .execute("UPDATE agent_registry SET agent_name = 'edited' WHERE agent_id = 'followed-0'")
            .await
            .unwrap();
        eventually("an edited row is shown", async || {
            servers[1].client().get_agent("followed-0").await.unwrap().agent_name == "edited"
        })
        .await;
    }
    for mut server in servers {
        let log = server.log();
        assert!(!log.contains("permission denied") && !log.contains("must be owner"), "{log}");
        server.stop().await;
    }
    // If there is nothing to migrate, the default mode needs no further rights.
    let server = Server::running(&roles.user, &[]).await;
    assert!(!server.client().list_agents(ListQuery::all()).await.unwrap().agents.is_empty());
    drop(roles.cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn outdated_tables_are_rejected_and_can_be_migrated_separately() {
    let store = Store::postgres().await;
    let never = ["--migrate", "never"];
    Server::running(&store.url, &[]).await.stop().await;
    store.execute("DELETE FROM _sqlx_migrations WHERE version = 3").await;
    let error = start_error(&store.url, &never).await;
    assert!(error.contains("run registry-server migrate"), "{error}");
    let (is_well, said) = run_program(&["migrate", "--database-url", &store.url]).await;
    assert!(is_well, "{said}");
    Server::running(&store.url, &never).await.stop().await;
    // A later version has migrated further.
    store.execute("INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), true, '', 0)").await;
    Server::running(&store.url, &never).await.stop().await;
    store.execute("UPDATE _sqlx_migrations SET checksum = '' WHERE version = 3").await;
    let error = start_error(&store.url, &never).await;
    assert!(error.contains("modified"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_can_be_migrated_separately() {
    let store = Store::sqlite();
    let file = store.url.trim_start_matches("sqlite://");
    let never = ["--migrate", "never"];
    let error = start_error(&store.url, &never).await;
    assert!(error.contains("run registry-server migrate"), "{error}");
    assert!(!std::path::Path::new(file).exists(), "a file was made");
    let (is_well, said) = run_program(&["migrate", "--database-url", &store.url]).await;
    assert!(is_well, "{said}");
    let server = Server::running(&store.url, &never).await;
    server.patient_client().register(&agent("a", "work")).await.unwrap();
    let (is_well, said) = run_program(&["migrate", "--database-url", &store.url]).await;
    assert!(!is_well && said.contains("another registry-server"), "{said}");
    drop(server);
    store.execute("DELETE FROM _sqlx_migrations WHERE version = 2").await;
    let error = start_error(&store.url, &never).await;
    assert!(error.contains("run registry-server migrate"), "{error}");
    // An in-memory database cannot be prepared.
    Server::running("sqlite::memory:", &never).await.stop().await;
}
