#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{Registration, Timestamp};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use tempfile::TempDir;

use super::SqliteDatabase;
use crate::config::MigrateMode;
use crate::store::{
    AgentRow, AgentSender, Database, Event, EventKind, HeartbeatWrite, Purpose, Session, StoredAgent, Writes,
};

struct TestFile {
    url: String,
    _folder: TempDir,
}

impl TestFile {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            url: format!("sqlite://{}?mode=rwc", folder.path().join("registry.db").display()),
            _folder: folder,
        }
    }

    async fn open(&self) -> SqliteDatabase {
        SqliteDatabase::open(&self.url, MigrateMode::Auto).await.unwrap()
    }

    /// Executes SQL, as another program.
    async fn execute(&self, sql: &str) {
        let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
    }
}

fn agent(number: i64, revision: i64, last_heartbeat: Timestamp) -> Arc<StoredAgent> {
    // An id that needs escaping in JSON. Only another program can have written it.
    let registration = Registration::new(format!("agent \"{number}\""), "Agent", "http://agent");
    let draft = StoredAgent::from_registration(registration).unwrap();
    Arc::new(StoredAgent { last_heartbeat, revision, ..draft })
}

/// Writes agents, each with the next revision.
async fn put(session: &mut dyn Session, numbers: impl Iterator<Item = i64>) -> Vec<Arc<StoredAgent>> {
    let head = session.begin().await.unwrap();
    let revisions = head.position.revision + 1..;
    let agents: Vec<_> =
        numbers.zip(revisions).map(|(number, revision)| agent(number, revision, head.now)).collect();
    let event = |agent: &Arc<StoredAgent>| Event::new(EventKind::Registered, agent.clone());
    session
        .commit(&Writes { events: agents.iter().map(event).collect(), ..Writes::default() })
        .await
        .unwrap();
    agents
}

/// Writes heartbeats, and returns their times.
async fn beat(session: &mut dyn Session, agents: &[Arc<StoredAgent>]) -> Vec<Option<Timestamp>> {
    let write = |agent: &Arc<StoredAgent>| HeartbeatWrite { agent: agent.clone(), age: Duration::ZERO };
    let heartbeats: Vec<_> = agents.iter().map(write).collect();
    session.write_heartbeats(&heartbeats).await.unwrap().times
}

/// Returns the last heartbeats of all agents, as loaded after a restart.
async fn loaded(file: &TestFile) -> BTreeMap<String, Timestamp> {
    let mut session = file.open().await.connect(Purpose::Reads).await.unwrap();
    let (agents_tx, mut agents_rx) = AgentSender::channel();
    session.load(agents_tx).await.unwrap();
    let mut loaded = BTreeMap::new();
    while let Some(agents) = agents_rx.recv().await {
        loaded.extend(agents.into_iter().map(|agent| (agent.agent_id, agent.last_heartbeat)));
    }
    loaded
}

#[tokio::test]
async fn last_heartbeats_survive_a_restart_and_the_log_stays_short() {
    let file = TestFile::new();
    let database = file.open().await;
    let mut session = database.connect(Purpose::Heartbeats).await.unwrap();
    let agents = put(&mut *session, 0..1_000).await;
    let mut expected = BTreeMap::new();
    // The first agents send one heartbeat each, the others many.
    for round in 0..40 {
        let some = if round == 0 { &agents[..] } else { &agents[100..] };
        for batch in some.chunks(90) {
            let times = beat(&mut *session, batch).await;
            expected
                .extend(batch.iter().map(|agent| agent.agent_id.clone()).zip(times.into_iter().flatten()));
        }
    }
    let batches = file.number("SELECT count(*) FROM agent_registry_heartbeat").await;
    assert!((1..=30).contains(&batches), "{batches} of 401");
    // Another program writes invalid batches.
    file.execute(
        "INSERT INTO agent_registry_heartbeat (heard) VALUES ('no JSON'), ('{\"agent \\\"1\\\"\": \"x\"}')",
    )
    .await;
    drop((session, database));
    assert_eq!(loaded(&file).await, expected);
}

#[tokio::test]
async fn heartbeat_for_an_earlier_revision_is_rejected() {
    let file = TestFile::new();
    let database = file.open().await;
    let mut session = database.connect(Purpose::Heartbeats).await.unwrap();
    let before = put(&mut *session, 0..2).await;
    beat(&mut *session, &before).await;
    let after = put(&mut *session, 0..1).await;
    let last = beat(&mut *session, &after).await[0].unwrap();
    assert_eq!(beat(&mut *session, &before[..1]).await, [None]);
    drop((session, database));
    assert_eq!(loaded(&file).await["agent \"0\""], last);
}

#[tokio::test]
async fn heartbeats_survive_transactions_that_do_not_commit() {
    let file = TestFile::new();
    let database = file.open().await;
    let mut session = database.connect(Purpose::Heartbeats).await.unwrap();
    let agents = put(&mut *session, 0..1).await;
    let last = beat(&mut *session, &agents).await[0].unwrap();
    let ids = [agents[0].agent_id.clone()];
    let mut abandoned = database.connect(Purpose::Changes).await.unwrap();
    abandoned.begin().await.unwrap();
    let locked = abandoned.lock_agents(&ids).await.unwrap();
    assert!(matches!(&locked.rows[&ids[0]], AgentRow::Readable(agent) if agent.last_heartbeat == last));
    drop(abandoned);
    // A committed transaction moves the time as well.
    session.begin().await.unwrap();
    session.lock_agents(&ids).await.unwrap();
    let later = Timestamp::from_unix_millis(last.unix_millis() + 5);
    let heartbeats = vec![agent(0, agents[0].revision, later)];
    session.commit(&Writes { heartbeats, ..Writes::default() }).await.unwrap();
    drop((session, database));
    assert_eq!(loaded(&file).await[&ids[0]], later);
}

#[tokio::test]
async fn large_transactions_need_no_folder_for_temporary_files() {
    let file = TestFile::new();
    let database = file.open().await;
    let mut writer = database.writer.lock().await;
    let connection = &mut writer.as_mut().unwrap().connection;
    let temporary: i64 = sqlx::query_scalar("PRAGMA temp_store").fetch_one(connection).await.unwrap();
    assert_eq!(temporary, 2, "kept in memory");
}
