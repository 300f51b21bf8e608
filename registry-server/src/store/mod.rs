//! Persistence: database sessions, and one implementation per database.
//!
//! Sessions know neither the registry's rules nor time limits. The registry decides what is written, limits
//! the time of each step, and drops a session whose step failed or took too long.

mod agent;
mod agent_sender;
mod card;
mod encoded;
mod error;
mod log;
mod migrations;
mod postgres;
mod rows;
mod session;
mod sqlite;
mod tag;
mod writes;

pub(crate) use agent::StoredAgent;
pub(crate) use agent_sender::AgentSender;
pub(crate) use card::{CardWrite, card_digest};
pub(crate) use error::{CommitError, Result, StoreError};
pub(crate) use log::{Event, EventKind, Head, LogEntry, LogPage, Position, Snapshot};
pub(crate) use postgres::PostgresDatabase;
pub(crate) use rows::AgentRow;
pub(crate) use session::{
    AgentPage, Database, HeartbeatWrite, LastHeartbeats, LockedAgents, LogReader, Notification, Purpose,
    Session,
};
pub(crate) use sqlite::SqliteDatabase;
pub(crate) use tag::RegistrationTag;
pub(crate) use writes::Writes;

#[cfg(test)]
pub(crate) use {
    encoded::{Capabilities, Metadata},
    log::{MAX_LOG_PAGE, MAX_REPLAYED_ENTRIES},
    session::{Listener, WrittenHeartbeats},
};
