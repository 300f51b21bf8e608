//! What became of the agents of an import.

use std::fmt::Write;

use registry_sdk::Error;
use serde::Serialize;
use tokio::task::JoinSet;

use super::send::{Ended, Sent};
use crate::output::{Output, print_reason};
use crate::{Failure, Outcome};

/// Maximum number of agents that are named for one reason.
const MAX_NAMED: usize = 20;

/// Numbers of agents, as programs read them.
#[derive(Debug, Default, Serialize)]
struct Counts {
    imported: usize,
    replaced: usize,
    already_there: usize,
    /// Not sent, because their own processes were taking them out.
    draining: usize,
    /// Refused by the registry for their fields.
    refused: usize,
}

impl Counts {
    /// Returns the numbers in one line, for people.
    fn describe(&self) -> String {
        let Self { imported, replaced, already_there, draining, refused } = self;
        let mut text = format!("{imported} imported, {already_there} already there");
        for (count, what) in [
            (replaced, "replaced"),
            (draining, "left out, which were draining themselves"),
            (refused, "refused"),
        ] {
            if *count > 0 {
                let _ = write!(text, ", {count} {what}");
            }
        }
        text
    }
}

#[derive(Default)]
pub(super) struct Report {
    counts: Counts,
    /// Agents that may be given work, although the file says that they are in maintenance.
    in_service: Vec<String>,
    /// Agents that were not sent, because their own processes were taking them out.
    draining: Vec<String>,
    /// Why agents were refused.
    refusals: Vec<String>,
    stopped: Option<Stopped>,
}

/// Why no more agents are sent.
enum Stopped {
    ByError { line: usize, agent_id: String, error: Error },
    FileChanged { line: usize },
}

impl Report {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The file was not what it was when it was checked.
    pub(super) fn file_changed(&mut self, line: usize) {
        self.stopped.get_or_insert(Stopped::FileChanged { line });
    }

    /// Waits for an agent that is being sent. Returns whether there was one.
    pub(super) async fn add_next(&mut self, sending: &mut JoinSet<Ended>) -> bool {
        match sending.join_next().await {
            None => return false,
            Some(Ok(ended)) => self.add(ended),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
        true
    }

    fn add(&mut self, ended: Ended) {
        let Ended { line, agent_id, outcome } = ended;
        let counts = &mut self.counts;
        match outcome {
            Ok(Sent::Imported) => counts.imported += 1,
            Ok(Sent::Replaced) => counts.replaced += 1,
            Ok(Sent::AlreadyThere) => counts.already_there += 1,
            Ok(Sent::Draining) => {
                counts.draining += 1;
                self.draining.push(agent_id);
            }
            Ok(Sent::NotBegun) => {}
            Ok(Sent::AlreadyThereInService) => {
                counts.already_there += 1;
                self.in_service.push(agent_id);
            }
            // An older registry may take less. That is no reason to keep the others.
            Err(error @ Error::Invalid { .. }) => {
                counts.refused += 1;
                if self.refusals.len() < MAX_NAMED {
                    self.refusals.push(format!("\n  line {line}: {}", error.full_message()));
                }
            }
            Err(error) => self.stop_at(line, agent_id, error),
        }
    }

    /// Of several errors of one kind at a time, that of the first line is named, whichever came first.
    fn stop_at(&mut self, line: usize, agent_id: String, error: Error) {
        let is_denied = |error: &Error| matches!(error, Error::Denied { .. });
        let replaces = match &self.stopped {
            None => true,
            Some(Stopped::FileChanged { .. }) => false,
            Some(Stopped::ByError { line: first, error: stopped, .. }) => {
                (is_denied(stopped), *first) > (is_denied(&error), line)
            }
        };
        if replaces {
            self.stopped = Some(Stopped::ByError { line, agent_id, error });
        }
    }

    /// Prints how the import ended.
    pub(super) fn print(self, output: &Output) -> Result<Outcome, Failure> {
        if !self.in_service.is_empty() {
            let (count, named) = (self.in_service.len(), names(self.in_service));
            print_reason(&format!(
                "{count} that are already there are not in maintenance, but are in the file; `registryctl drain` takes one out: {named}"
            ));
        }
        if !self.draining.is_empty() {
            let (count, named) = (self.draining.len(), names(self.draining));
            print_reason(&format!("{count} were draining themselves and are left out: {named}"));
        }
        let counts = self.counts.describe();
        match self.stopped {
            None if self.counts.refused == 0 => {
                output.figures(&self.counts, &counts)?;
                Ok(Outcome::Positive)
            }
            None => Err(Failure::Input(format!(
                "{counts}; the registry refuses these fields:{}",
                self.refusals.concat()
            ))),
            Some(Stopped::FileChanged { line }) => Err(Failure::Input(format!(
                "stopped in line {line}, because the file has changed since it was checked: {counts}; import it again"
            ))),
            Some(Stopped::ByError { line, agent_id, error: error @ Error::Denied { .. } }) => {
                let denied = error.full_message();
                Err(Failure::Input(format!(
                    "stopped in line {line}, at the agent {agent_id:?}: {counts}; {denied}; an import needs a token of scope \"admin\", \
                     or of scope \"agent\" with patterns that match every agent of the file"
                )))
            }
            Some(Stopped::ByError { line, agent_id, error }) => {
                print_reason(&format!(
                    "stopped in line {line}, at the agent {agent_id:?}: {counts}; the same command goes on from there"
                ));
                Err(error.into())
            }
        }
    }
}

/// The first of these agents, by name.
fn names(mut agents: Vec<String>) -> String {
    agents.sort();
    match agents.len().saturating_sub(MAX_NAMED) {
        0 => agents.join(", "),
        more => format!("{} and {more} more", agents[..MAX_NAMED].join(", ")),
    }
}
