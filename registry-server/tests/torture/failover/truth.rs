//! The contents of the database, and whether servers show them.

use registry_sdk::ListQuery;
use sqlx::{Connection, SqliteConnection};

use crate::support::{Change, Cluster, Server};

/// An agent: its id, name and status, and the revision of its last change.
type Row = (String, String, String, i64);

const AGENTS: &str = "SELECT agent_id, agent_name, status, revision FROM agent_registry ORDER BY agent_id";
const CHANGES: &str = "SELECT revision, kind, agent_id FROM agent_registry_event ORDER BY revision";
const REVISION: &str = "SELECT revision FROM agent_registry_state";

/// The contents of a database at one moment.
pub(super) struct Truth {
    agents: Vec<Row>,
    pub(super) changes: Vec<Change>,
    pub(super) revision: u64,
}

/// Reads a [`Truth`] through a connection to either database.
macro_rules! read {
    ($connection:expr) => {{
        let mut connection = $connection;
        Truth::new(
            sqlx::query_as(REVISION).fetch_one(&mut connection).await.unwrap(),
            sqlx::query_as(AGENTS).fetch_all(&mut connection).await.unwrap(),
            sqlx::query_as(CHANGES).fetch_all(&mut connection).await.unwrap(),
        )
    }};
}

impl Truth {
    pub(super) async fn of(cluster: &Cluster) -> Self {
        read!(cluster.connect().await.unwrap())
    }

    pub(super) async fn of_sqlite(url: &str) -> Self {
        read!(SqliteConnection::connect(url).await.unwrap())
    }

    fn new(revision: (i64,), agents: Vec<Row>, changes: Vec<(i64, String, String)>) -> Self {
        let changes = changes.into_iter().map(|(revision, kind, agent_id)| Change {
            revision: revision.try_into().unwrap(),
            kind,
            agent_id,
        });
        Self { agents, changes: changes.collect(), revision: revision.0.try_into().unwrap() }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.agents.iter().map(|(id, ..)| id.as_str())
    }

    /// Whether a server's list and search show exactly these contents.
    pub(super) async fn is_shown_by(&self, server: &Server) -> Result<(), String> {
        let client = server.client();
        client.get_server_health().await.map_err(|error| format!("unhealthy: {error}"))?;
        let listed = client.list_agents(ListQuery::all()).await.map_err(|error| error.to_string())?.agents;
        let listed: Vec<Row> = listed
            .into_iter()
            .map(|record| {
                let revision = record.revision.unwrap().try_into().unwrap();
                (record.agent_id, record.agent_name, record.status.to_string(), revision)
            })
            .collect();
        difference("the list", &listed, &self.agents)?;
        let found = client.search_capabilities("endure").await.map_err(|error| error.to_string())?;
        let mut found: Vec<_> = found.iter().map(|found| found.agent_id.as_str()).collect();
        found.sort_unstable();
        difference("the search", &found, &self.ids().collect::<Vec<_>>())
    }
}

fn difference<T: PartialEq + std::fmt::Debug>(what: &str, shown: &[T], stored: &[T]) -> Result<(), String> {
    let only = |these: &[T], those: &[T]| -> String {
        these.iter().filter(|one| !those.contains(one)).map(|one| format!("{one:?} ")).collect()
    };
    if shown == stored {
        return Ok(());
    }
    Err(format!("{what} alone has {}; the database alone has {}", only(shown, stored), only(stored, shown)))
}
