//! Migrations that run beside running servers and any other users of the tables.
//!
//! While a migration waits for a table lock, every later statement on that table queues behind it. So an
//! attempt waits only briefly, and is repeated later.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep, timeout};

use super::settings::set_up;
use super::start::{CONNECT_TIMEOUT, has_code, sqlx_error, timed_out};
use crate::store::migrations;

/// Time limit for all attempts together. Dumping a large database, which blocks migrations, takes minutes.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Delay between attempts, during which running servers work undisturbed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Number of attempts between two log lines.
const ATTEMPTS_PER_WARNING: u32 = 10;

/// Settings of the migrating session, overriding those of the role.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    // Shorter than in running servers, whose statements queue behind this session's.
    ("lock_timeout", "50ms"),
    // If this server is cut off inside a transaction, the tables must not stay locked.
    ("idle_in_transaction_session_timeout", "5s"),
    ("default_transaction_isolation", "read committed"),
];

/// Interval between two checks of the migrating session.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Time without a successful check after which the database counts as unavailable.
const AWAY_TIMEOUT: Duration = Duration::from_secs(20);

/// PostgreSQL's codes for a lock timeout, a deadlock, and a session ended because it idled in a transaction.
const TRANSIENT_CODES: [&str; 3] = ["55P03", "40P01", "25P03"];

fn migrator() -> Migrator {
    let mut migrations = sqlx::migrate!("../migrations/postgres");
    // A server of a later version may have migrated further. The schema stays compatible with this one.
    migrations.set_ignore_missing(true);
    migrations
}

/// Whether all migrations have been applied. Only needs the right to read.
pub(super) async fn is_current(connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let reading = async {
        let query = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(migrations::TABLE);
        let has_table: bool = query.fetch_one(&mut *connection).await?;
        Ok(has_table && migrations::are_applied(&migrator(), connection).await?)
    };
    timeout(CONNECT_TIMEOUT, reading).await.unwrap_or_else(|_| Err(sqlx::Error::from(timed_out()).into()))
}

/// Applies the missing migrations. Servers that start together do so one after another.
pub(super) async fn run(options: &PgConnectOptions) -> Result<(), MigrateError> {
    let deadline = Instant::now() + MIGRATION_TIMEOUT;
    let mut observer = Observer { options, connection: None, holders: None };
    let mut attempts = 0;
    loop {
        let error = match attempt(options, &mut observer).await {
            Err(error) if is_transient(&error) && Instant::now() < deadline => error,
            outcome => return outcome,
        };
        if attempts % ATTEMPTS_PER_WARNING == 0 {
            tracing::warn!(
                %error,
                held_by = observer.holders.as_deref().unwrap_or("unknown"),
                limit = ?MIGRATION_TIMEOUT,
                "cannot migrate the database yet, trying again every second; running servers go on meanwhile"
            );
        }
        attempts += 1;
        sleep(RETRY_INTERVAL).await;
    }
}

/// Migrates in a new session: the session of a failed attempt may still hold sqlx's migration lock.
async fn attempt(options: &PgConnectOptions, observer: &mut Observer<'_>) -> Result<(), MigrateError> {
    let opened = timeout(CONNECT_TIMEOUT, open_session(options)).await;
    let (mut connection, pid) = opened.unwrap_or_else(|_| Err(timed_out().into()))?;
    let migrations = migrator();
    tokio::select! {
        migrated = migrations.run(&mut connection) => migrated,
        () = observer.lost(pid) => Err(sqlx::Error::from(timed_out()).into()),
    }
}

/// Opens the migrating session. Returns the connection and the id of its server process.
async fn open_session(options: &PgConnectOptions) -> sqlx::Result<(PgConnection, i32)> {
    let mut connection = PgConnection::connect_with(options).await?;
    set_up(&mut connection, SETTINGS).await?;
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    Ok((connection, pid))
}

/// Whether another attempt may succeed.
fn is_transient(error: &MigrateError) -> bool {
    sqlx_error(error).is_some_and(|error| match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::TimedOut,
        error => TRANSIENT_CODES.iter().any(|code| has_code(error, code)),
    })
}

/// Watches the migrating session from a second connection.
///
/// A session that waits cannot say for whom, and from here, a dead connection looks the same as a long
/// migration.
struct Observer<'a> {
    options: &'a PgConnectOptions,
    /// `None` before the first check and after a failed one.
    connection: Option<PgConnection>,
    /// The sessions that the migration last waited for.
    holders: Option<String>,
}

impl Observer<'_> {
    /// Returns when the migrating session has ended or is idle although this server waits for its response,
    /// or when the database is unavailable.
    async fn lost(&mut self, pid: i32) {
        let mut last_success = Instant::now();
        while last_success.elapsed() < AWAY_TIMEOUT {
            sleep(LOOK_INTERVAL).await;
            match timeout(LOOK_TIMEOUT, self.look(pid)).await {
                Ok(Ok(true)) => last_success = Instant::now(),
                Ok(Ok(false)) => return,
                // The next check opens a new connection.
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    /// Returns whether the session is or recently was active, and records the sessions that it waits for.
    async fn look(&mut self, pid: i32) -> sqlx::Result<bool> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => PgConnection::connect_with(self.options).await?,
        };
        // Transactions of other roles are only visible with the necessary privilege.
        let looked = sqlx::query(
            "SELECT session.state = 'active' OR session.state_change > clock_timestamp() - interval '3 s' AS works,
                 (SELECT string_agg(concat_ws(', ', 'process ' || blocking.pid, nullif(application_name, ''),
                          'role ' || usename, 'in a transaction since ' || date_trunc('second', xact_start)), '; ')
                  FROM unnest(CASE session.wait_event_type WHEN 'Lock' THEN pg_blocking_pids(session.pid) END)
                          AS blocking (pid)
                      LEFT JOIN pg_stat_activity AS holder ON holder.pid = blocking.pid) AS holders
             FROM pg_stat_activity AS session WHERE session.pid = $1",
        )
        .bind(pid)
        .fetch_optional(&mut connection)
        .await?;
        self.connection = Some(connection);
        let Some(session) = looked else { return Ok(false) };
        if let Some(holders) = session.try_get("holders")? {
            self.holders = Some(holders);
        }
        Ok(session.try_get::<Option<bool>, _>("works")?.unwrap_or(true))
    }
}
