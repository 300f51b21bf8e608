//! The other servers that share the database and have announced themselves.
//!
//! Servers with different settings are a mistake, except during a rolling upgrade, so they are logged and
//! counted.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::metrics::ReplicaCounts;

/// Number of this server's announcements after which a server that stayed silent counts as gone.
///
/// Counting instead of timing keeps servers from being forgotten while the database is unavailable.
const MAX_SILENT_ROUNDS: u32 = 4;

/// Settings that should be the same on all servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    version: String,
    heartbeat_timeout_millis: u64,
}

/// The servers that share the database.
#[derive(Debug)]
pub(super) struct Replicas {
    own: Settings,
    others: Mutex<Others>,
    introduction_due: Notify,
}

/// The other servers, by their ids.
#[derive(Debug, Default)]
struct Others {
    by_id: HashMap<u64, Other>,
    /// The differing values that were already logged, in the order of [`Setting::ALL`].
    logged: [BTreeSet<String>; 2],
}

#[derive(Debug)]
struct Other {
    settings: Settings,
    silent_rounds: u32,
}

#[derive(Clone, Copy, Debug)]
enum Setting {
    Version,
    HeartbeatTimeout,
}

impl Replicas {
    pub(super) fn new(heartbeat_timeout: Duration) -> Self {
        let own = Settings {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            heartbeat_timeout_millis: u64::try_from(heartbeat_timeout.as_millis()).unwrap_or(u64::MAX),
        };
        Self { own, others: Mutex::default(), introduction_due: Notify::new() }
    }

    /// Returns the settings that this server announces.
    pub(super) fn own(&self) -> &Settings {
        &self.own
    }

    /// Makes this server announce itself soon instead of waiting for the next round.
    pub(super) fn introduce_soon(&self) {
        self.introduction_due.notify_one();
    }

    /// Waits until this server has to announce itself.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn introduction_due(&self) {
        self.introduction_due.notified().await;
    }

    /// Records the announcement of another server.
    pub(super) fn record(&self, server_id: u64, settings: Settings) {
        let mut others = self.others.lock();
        let known = others.by_id.insert(server_id, Other { settings, silent_rounds: 0 });
        if known.is_none() {
            // The other server does not know this one yet.
            self.introduce_soon();
        }
        self.log_changes(&mut others);
    }

    /// Forgets servers that have been silent for too long. Called after each of this server's announcements.
    pub(super) fn end_round(&self) {
        let mut others = self.others.lock();
        others.by_id.retain(|_, other| {
            other.silent_rounds += 1;
            other.silent_rounds < MAX_SILENT_ROUNDS
        });
        self.log_changes(&mut others);
    }

    pub(super) fn counts(&self) -> ReplicaCounts {
        let others = self.others.lock();
        let differing = |setting: Setting| {
            let differs = |other: &&Other| setting.of(&other.settings) != setting.of(&self.own);
            (setting.as_str(), others.by_id.values().filter(differs).count())
        };
        ReplicaCounts { all: 1 + others.by_id.len(), differing: Setting::ALL.map(differing) }
    }

    /// Logs a change in the values that other servers have instead of this server's. Logs each change once.
    fn log_changes(&self, others: &mut Others) {
        let Others { by_id, logged } = others;
        for (setting, logged) in Setting::ALL.into_iter().zip(logged) {
            let own = setting.of(&self.own);
            let values = by_id.values().map(|other| setting.of(&other.settings));
            let differing: BTreeSet<String> = values.filter(|value| *value != own).collect();
            if differing != *logged {
                setting.log(&own, &differing);
                *logged = differing;
            }
        }
    }
}

impl Setting {
    const ALL: [Self; 2] = [Self::Version, Self::HeartbeatTimeout];

    /// Returns the setting's name in the metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::HeartbeatTimeout => "heartbeat_timeout",
        }
    }

    /// Returns the setting's value, for comparing and logging.
    fn of(self, settings: &Settings) -> String {
        match self {
            Self::Version => settings.version.clone(),
            Self::HeartbeatTimeout => {
                format!("{:?}", Duration::from_millis(settings.heartbeat_timeout_millis))
            }
        }
    }

    fn log(self, own: &str, others: &BTreeSet<String>) {
        let others = others.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match self {
            _ if others.is_empty() => {
                tracing::info!(
                    setting = self.as_str(),
                    own,
                    "the servers that share this database no longer differ"
                );
            }
            Self::Version => tracing::info!(
                own,
                others,
                "servers that share this database have different versions, as during a rolling upgrade: if this lasts, upgrade the \
                 older ones"
            ),
            Self::HeartbeatTimeout => tracing::warn!(
                own,
                others,
                "servers that share this database were started with different --heartbeat-timeout values, and the value of the \
                 latest start applies to all: start all servers with the same value"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn settings(version: &str, heartbeat_timeout: Duration) -> Settings {
        Settings { version: version.to_owned(), ..Replicas::new(heartbeat_timeout).own }
    }

    fn counts(replicas: &Replicas) -> (usize, usize, usize) {
        let ReplicaCounts { all, differing: [(_, version), (_, timeout)] } = replicas.counts();
        (all, version, timeout)
    }

    #[test]
    fn differing_servers_are_counted_by_setting() {
        let replicas = Replicas::new(TIMEOUT);
        replicas.record(1, replicas.own.clone());
        assert_eq!(counts(&replicas), (2, 0, 0));
        replicas.record(2, settings("0.0.1", TIMEOUT));
        replicas.record(3, settings("0.0.1", TIMEOUT * 2));
        assert_eq!(counts(&replicas), (4, 2, 1));
        // The server was restarted with other settings.
        replicas.record(3, settings("0.0.2", TIMEOUT));
        assert_eq!(counts(&replicas), (4, 2, 0));
    }

    #[test]
    fn server_that_is_silent_for_four_rounds_is_forgotten() {
        let replicas = Replicas::new(TIMEOUT);
        replicas.record(1, settings("0.0.1", TIMEOUT));
        (0..3).for_each(|_| replicas.end_round());
        replicas.record(2, replicas.own.clone());
        assert_eq!(counts(&replicas), (3, 1, 0));
        replicas.end_round();
        assert_eq!(counts(&replicas), (2, 0, 0));
        for _ in 0..10 {
            replicas.end_round();
            replicas.record(2, replicas.own.clone());
        }
        assert_eq!(counts(&replicas), (2, 0, 0));
    }
}
