//! `registryctl import`: the agents of an export, to a registry.

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

/// Maximum number of agents that are sent at a time. A registry writes those together to its database.
const MAX_CONCURRENT: usize = 64;

/// How long a call goes on while the registry cannot be reached, or asks to be sent less.
const PATIENCE: Duration = Duration::from_secs(20);

/// Imports an export. `name` is that of the file.
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
    /// Whether agents that the registry has are registered as the file says.
    replaces: bool,
}

impl Import<'_> {
    async fn run(self, mut file: impl Source) -> Result<Outcome, Failure> {
        let checked = check(&mut file, Timestamp::from(SystemTime::now()));
        if let Some((line, field)) = checked.map_err(|refused| self.refused(refused))? {
            print_reason(&format!(
                "line {line}: this registryctl does not know maintenance.{field}, and does not import it: use a newer one"
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
        // The first one goes alone: it mostly shows whether the token is wrong, or allows too little.
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
                Failure::Input(format!("{} cannot be imported, and nothing was sent:{errors}", self.name))
            }
        }
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::Input(format!("cannot read {}: {error}", self.name))
    }
}
