//! Migrations, beside servers that are running and whatever else uses the tables.
//!
//! While a migration waits for a lock on a table, every later statement on the table waits behind it. So it waits for a
//! moment only, and tries again later.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep, timeout};

use super::start::{CONNECT_TIMEOUT, has_code};
use super::{set_up, timed_out};
use crate::store::migrations;

/// Limit of all attempts together. A dump of a large database takes minutes.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Pause between attempts, in which running servers work undisturbed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Number of attempts between two lines in the log.
const ATTEMPTS_PER_WARNING: u32 = 10;

/// Settings of the session that migrates, whatever the role has.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    // Shorter than that of running servers, whose statements wait behind this session's.
    ("lock_timeout", "50ms"),
    // If this server is cut off inside a transaction, the tables must not stay locked.
    ("idle_in_transaction_session_timeout", "5s"),
    ("default_transaction_isolation", "read committed"),
];

/// How often the session that migrates is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long no look may succeed, until the database counts as away.
const AWAY_TIMEOUT: Duration = Duration::from_secs(20);

/// PostgreSQL's codes for a lock timeout, a deadlock, and a session that was ended since it was idle in a transaction.
const TRANSIENT_CODES: [&str; 3] = ["55P03", "40P01", "25P03"];

fn migrator() -> Migrator {
    let mut migrations = sqlx::migrate!("../migrations/postgres");
    // A server of a later version may have migrated further. The schema stays compatible with this one.
    migrations.set_ignore_missing(true);
    migrations
}

/// Whether all migrations have been applied. Needs no right but to read.
pub(super) async fn is_current(connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let reading = async {
        let query = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(migrations::TABLE);
        let has_table: bool = query.fetch_one(&mut *connection).await?;
        Ok(has_table && migrations::are_applied(&migrator(), connection).await?)
    };
    timeout(CONNECT_TIMEOUT, reading).await.unwrap_or_else(|_| Err(sqlx::Error::from(timed_out()).into()))
}

/// Applies what is missing. Servers that start together do so one after another.
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

/// Migrates in a session of its own: one that failed may still have the lock that lets one server migrate at a time.
async fn attempt(options: &PgConnectOptions, observer: &mut Observer<'_>) -> Result<(), MigrateError> {
    let opened = timeout(CONNECT_TIMEOUT, open_session(options)).await;
    let (mut connection, pid) = opened.unwrap_or_else(|_| Err(timed_out().into()))?;
    let migrations = migrator();
    tokio::select! {
        migrated = migrations.run(&mut connection) => migrated,
        () = observer.lost(pid) => Err(sqlx::Error::from(timed_out()).into()),
    }
}

/// Returns a session, and its process.
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

/// Returns the database's error.
pub(super) fn sqlx_error(error: &MigrateError) -> Option<&sqlx::Error> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Some(error),
        _ => None,
    }
}

/// Looks at the session that migrates from another one: a session that waits cannot say for whom, and a connection that fell
/// silent looks the same from here as a migration that takes long.
struct Observer<'a> {
    options: &'a PgConnectOptions,
    /// `None` until the first look, and after one that failed.
    connection: Option<PgConnection>,
    /// Sessions that held what the migration waited for last.
    holders: Option<String>,
}

impl Observer<'_> {
    /// Waits until the session has ended or has nothing to do, although this server waits for its answer, or until the database
    /// is away.
    async fn lost(&mut self, pid: i32) {
        let mut last_success = Instant::now();
        while last_success.elapsed() < AWAY_TIMEOUT {
            sleep(LOOK_INTERVAL).await;
            match timeout(LOOK_TIMEOUT, self.look(pid)).await {
                Ok(Ok(true)) => last_success = Instant::now(),
                Ok(Ok(false)) => return,
                // The next look connects anew.
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    /// Returns whether the session works, or did so a moment ago, and notes for whom it waits.
    async fn look(&mut self, pid: i32) -> sqlx::Result<bool> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => PgConnection::connect_with(self.options).await?,
        };
        // Others' transactions are only seen with the right to it.
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
