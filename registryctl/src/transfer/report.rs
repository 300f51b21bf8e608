//! Report on an import.

use std::fmt::Write;

use registry_sdk::Error;
use serde::Serialize;
use tokio::task::JoinSet;

use super::send::{Ended, Sent};
use crate::output::{Output, number_of_agents, print_reason};
use crate::{Failure, Outcome};

/// Maximum number of agents named in a message.
const MAX_NAMED: usize = 20;

/// Numbers of agents, printed as JSON for programs.
#[derive(Debug, Default, Serialize)]
struct Counts {
    imported: usize,
    replaced: usize,
    already_there: usize,
    /// Not sent, because they were draining before a shutdown.
    draining: usize,
    /// Rejected by the registry as invalid.
    refused: usize,
}

impl Counts {
    /// Returns the numbers as one line for people.
    fn describe(&self) -> String {
        let Self { imported, replaced, already_there, draining, refused } = self;
        let mut text = format!("{imported} imported, {already_there} already there");
        for (count, what) in
            [(replaced, "replaced"), (draining, "skipped because they were draining"), (refused, "rejected")]
        {
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
    /// Agents that are not in maintenance, although they are in the file.
    in_service: Vec<String>,
    /// Agents not sent, because they were draining before a shutdown.
    draining: Vec<String>,
    /// Why agents were rejected.
    refusals: Vec<String>,
    stopped: Option<Stopped>,
}

/// Why the import stopped.
enum Stopped {
    ByError { line: usize, agent_id: String, error: Error },
    FileChanged { line: usize },
}

impl Report {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Records that the file has changed since it was checked.
    pub(super) fn file_changed(&mut self, line: usize) {
        self.stopped.get_or_insert(Stopped::FileChanged { line });
    }

    /// Waits until the next agent has been sent. Returns whether there was one.
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
            // An older registry may have stricter limits. The other agents are sent all the same.
            Err(error @ Error::Invalid { .. }) => {
                counts.refused += 1;
                if self.refusals.len() < MAX_NAMED {
                    self.refusals.push(format!("\n  line {line}: {}", error.full_message()));
                }
            }
            Err(error) => self.stop_at(line, agent_id, error),
        }
    }

    /// Keeps the error to report: a denied request before any other error, then the one in the earlier line, in whatever order the
    /// responses arrive.
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

    /// Prints the report.
    pub(super) fn print(self, output: &Output) -> Result<Outcome, Failure> {
        if !self.in_service.is_empty() {
            let (count, named) = (number_of_agents(self.in_service.len()), names(self.in_service));
            print_reason(&format!(
                "{count} already registered, so the maintenance in the file was not begun (use `registryctl drain`): {named}"
            ));
        }
        if !self.draining.is_empty() {
            let (count, named) = (number_of_agents(self.draining.len()), names(self.draining));
            print_reason(&format!(
                "skipped {count} whose process was draining before a shutdown when the file was exported: {named}"
            ));
        }
        let counts = self.counts.describe();
        match self.stopped {
            None if self.counts.refused == 0 => {
                output.figures(&self.counts, &counts)?;
                Ok(Outcome::Positive)
            }
            None => Err(Failure::Input(format!(
                "{counts}; the registry rejected these agents:{}",
                self.refusals.concat()
            ))),
            Some(Stopped::FileChanged { line }) => Err(Failure::Input(format!(
                "stopped at line {line}, because the file changed during the import: {counts}; import it again"
            ))),
            Some(Stopped::ByError { line, agent_id, error: error @ Error::Denied { .. } }) => {
                let denied = error.full_message();
                Err(Failure::Input(format!(
                    "stopped at line {line}, agent {agent_id:?}: {counts}; {denied}; an import needs a token with scope \"admin\", or with \
                     scope \"agent\" and patterns that match every agent in the file"
                )))
            }
            Some(Stopped::ByError { line, agent_id, error }) => {
                print_reason(&format!(
                    "stopped at line {line}, agent {agent_id:?}: {counts}; run the same command again to continue"
                ));
                Err(error.into())
            }
        }
    }
}

/// Returns the first of some agents in alphabetical order, and the number of the others.
fn names(mut agents: Vec<String>) -> String {
    agents.sort();
    match agents.len().saturating_sub(MAX_NAMED) {
        0 => agents.join(", "),
        more => format!("{} and {more} more", agents[..MAX_NAMED].join(", ")),
    }
}
