//! `registryctl import`: registers the agents of an export.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use registry_sdk::contract::Timestamp;
use registry_sdk::{RegistryClient, RetryPolicy};
use tokio::task::JoinSet;

use super::check::{Item, Refused, check, read_header};
use super::lines::Lines;
use super::report::Report;
use super::send::Sender;
use crate::output::{Output, print_reason};
use crate::source::Source;
use crate::{Failure, Outcome};

/// Maximum number of agents sent concurrently. The registry writes concurrent registrations to its database in one batch.
const MAX_CONCURRENT: usize = 64;

/// Maximum time to retry a call while the registry cannot be reached or limits requests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Imports an export. `name` is the name of the file.
pub(crate) async fn import(
    client: &RegistryClient,
    output: &Output,
    name: String,
    file: impl Source,
    replaces: bool,
) -> Result<Outcome, Failure> {
    Import { client, output, name, replaces }.run(file).await
}

struct Import<'a> {
    client: &'a RegistryClient,
    output: &'a Output,
    /// Name of the file.
    name: String,
    /// Whether to replace agents that are already registered.
    replaces: bool,
}

impl Import<'_> {
    async fn run(self, mut file: impl Source) -> Result<Outcome, Failure> {
        let checked = check(&mut file, Timestamp::from(SystemTime::now()));
        if let Some((line, field)) = checked.map_err(|refused| self.refused(refused))? {
            print_reason(&format!(
                "line {line}: ignoring the unknown field maintenance.{field}: use a newer registryctl to import it"
            ));
        }
        file.rewind().map_err(|error| self.unreadable(&error))?;
        let report = self.send_all(file).await?;
        report.print(self.output)
    }

    async fn send_all(&self, file: impl BufRead) -> Result<Report, Failure> {
        let mut lines = Lines::new(file);
        read_header(&mut lines).map_err(|refused| self.refused(refused))?;
        let policy = RetryPolicy::discovery().attempts(1_000).max_delay(Duration::from_secs(5));
        let client = self.client.with_retry(policy.time_limit(PATIENCE));
        let sender = Arc::new(Sender::new(client, self.replaces));
        let mut sending = JoinSet::new();
        let mut report = Report::default();
        // The first agent is sent alone: it usually shows whether the token is wrong or lacks permissions.
        let mut max_concurrent = 1;
        while !report.is_stopped()
            && let Some(line) = lines.next().map_err(|error| self.unreadable(&error))?
        {
            match Item::read(&line, Timestamp::from(SystemTime::now())) {
                Item::Agent(entry) => {
                    let sender = sender.clone();
                    sending.spawn(async move { sender.send(&entry, line.number).await });
                }
                Item::End(_) => break,
                Item::Invalid(_) => report.file_changed(line.number),
            }
            if sending.len() == max_concurrent {
                report.add_next(&mut sending).await;
                max_concurrent = MAX_CONCURRENT;
            }
        }
        while report.add_next(&mut sending).await {}
        Ok(report)
    }

    fn refused(&self, refused: Refused) -> Failure {
        match refused {
            Refused::Unreadable(error) => self.unreadable(&error),
            Refused::Invalid(errors) => {
                Failure::Input(format!("{} cannot be imported, nothing was sent:{errors}", self.name))
            }
        }
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::Input(format!("cannot read {}: {error}", self.name))
    }
}
