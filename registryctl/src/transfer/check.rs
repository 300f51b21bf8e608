//! Reading an export from its beginning to its end, so that nothing is sent of one that is broken.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{self, BufRead};

use registry_sdk::contract::Timestamp;

use super::format::{Entry, FORMAT, Footer, Header};
use super::lines::{Line, Lines};

/// Maximum number of errors that are shown.
const MAX_SHOWN: usize = 20;

/// Why a file cannot be imported.
#[derive(Debug)]
pub(super) enum Refused {
    Unreadable(io::Error),
    /// All that is wrong, each error on a line of its own.
    Invalid(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// A line after the first one.
pub(super) enum Item {
    Agent(Box<Entry>),
    /// The last line, with the number of agents that it states.
    End(usize),
    /// All that is wrong with the line.
    Invalid(Vec<String>),
}

impl Item {
    pub(super) fn read(line: &Line, now: Timestamp) -> Self {
        let Some(text) = &line.text else {
            return Self::Invalid(vec!["is too long for an agent".to_owned()]);
        };
        if let Ok(Footer { agents_exported }) = serde_json::from_slice(text) {
            return Self::End(agents_exported);
        }
        match Entry::read(text, now) {
            Ok(entry) => Self::Agent(Box::new(entry)),
            Err(errors) => Self::Invalid(errors),
        }
    }
}

/// The errors of a file, of which the first are kept.
#[derive(Default)]
struct Errors {
    shown: String,
    count: usize,
}

impl Errors {
    fn add(&mut self, line: usize, error: &str) {
        self.count += 1;
        if self.count <= MAX_SHOWN {
            let _ = write!(self.shown, "\n  line {line}: {error}");
        }
    }

    fn check(mut self) -> Result<(), Refused> {
        if self.count > MAX_SHOWN {
            let _ = write!(self.shown, "\n  and {} more", self.count - MAX_SHOWN);
        }
        if self.count == 0 { Ok(()) } else { Err(Refused::Invalid(self.shown)) }
    }
}

/// Reads the first line.
pub(super) fn read_header<R: BufRead>(lines: &mut Lines<R>) -> Result<(), Refused> {
    let text = lines.next()?.and_then(|line| line.text).unwrap_or_default();
    let error = match serde_json::from_slice(&text) {
        Ok(Header { agent_registry_export: FORMAT, .. }) => return Ok(()),
        Ok(Header { agent_registry_export: format, .. }) => {
            format!("is of format {format}, and this registryctl reads format {FORMAT}: use a newer one")
        }
        Err(_) => format!(
            "expected {{\"agent_registry_export\":{FORMAT},…}}, with which a file of `registryctl export` begins; a single agent is \
             for `registryctl register`"
        ),
    };
    Err(Refused::Invalid(format!("\n  line 1: {error}")))
}

/// Checks all lines. Returns the first field of a maintenance that this version does not know, with its line.
pub(super) fn check<R: BufRead>(reader: R, now: Timestamp) -> Result<Option<(usize, String)>, Refused> {
    let mut lines = Lines::new(reader);
    read_header(&mut lines)?;
    let (mut errors, mut unknown) = (Errors::default(), None);
    let mut line_of: HashMap<String, usize> = HashMap::new();
    let (mut agents, mut end) = (0, None);
    while let Some(line) = lines.next()? {
        let number = line.number;
        if end.is_some() {
            errors.add(number, "must not be there: the export has ended before");
            break;
        }
        match Item::read(&line, now) {
            Item::End(stated) => end = Some((number, stated)),
            Item::Invalid(all) => {
                agents += 1;
                for error in &all {
                    errors.add(number, error);
                }
            }
            Item::Agent(entry) => {
                agents += 1;
                let field = entry.unknown_of_maintenance().next();
                unknown = unknown.or_else(|| field.map(|field| (number, field.to_owned())));
                if let Some(first) = line_of.insert(entry.agent_id().to_owned(), number) {
                    errors
                        .add(number, &format!("agent_id: {:?} is in line {first} already", entry.agent_id()));
                }
            }
        }
    }
    match end {
        Some((number, stated)) if stated != agents => errors.add(
            number,
            &format!(
                "states {stated} agents, but the file has {agents}: export again, or correct the number if it was edited on purpose"
            ),
        ),
        Some(_) => {}
        None => errors.add(
            lines.number() + 1,
            "expected {\"agents_exported\":…}, with which an export ends: it was cut off, export again",
        ),
    }
    errors.check().map(|()| unknown)
}
