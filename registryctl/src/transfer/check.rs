//! Validation of a whole export before any of its agents is sent.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{self, BufRead};

use registry_sdk::contract::Timestamp;
use serde::de::DeserializeOwned;

use super::fields::Fields;
use super::format::{Entry, FORMAT};
use super::lines::{Line, Lines};

/// Maximum number of errors that are shown.
const MAX_SHOWN: usize = 20;

/// Why a file cannot be imported.
#[derive(Debug)]
pub(super) enum Refused {
    Unreadable(io::Error),
    /// All errors, each on a line of its own.
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
    /// The last line, with its number of agents.
    End(usize),
    /// All errors in the line.
    Invalid(Vec<String>),
}

impl Item {
    pub(super) fn read(line: &Line, now: Timestamp) -> Self {
        let Some(text) = &line.text else {
            return Self::Invalid(vec!["is too long for an agent".to_owned()]);
        };
        let fields = match Fields::read(text) {
            Ok(fields) => fields,
            Err(error) => return Self::Invalid(vec![error.to_string()]),
        };
        if fields.contains("agents_exported") {
            return match value(&fields, "agents_exported") {
                Some(count) => Self::End(count),
                None => Self::Invalid(vec!["agents_exported: must be the number of agents".to_owned()]),
            };
        }
        match Entry::read(fields, now) {
            Ok(entry) => Self::Agent(Box::new(entry)),
            Err(errors) => Self::Invalid(errors),
        }
    }
}

/// Errors in a file. Only the first [`MAX_SHOWN`] are kept.
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

/// Returns the value of a field, if it has this type.
fn value<T: DeserializeOwned>(fields: &Fields, name: &str) -> Option<T> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

/// Reads the first line.
pub(super) fn read_header<R: BufRead>(lines: &mut Lines<R>) -> Result<(), Refused> {
    let text = lines.next()?.and_then(|line| line.text).unwrap_or_default();
    check_header(&text).map_err(|error| Refused::Invalid(format!("\n  line 1: {error}")))
}

fn check_header(text: &[u8]) -> Result<(), String> {
    let fields = Fields::read(text).ok().filter(|fields| fields.contains("agent_registry_export"));
    let fields = fields.ok_or_else(|| {
        format!(
            "expected {{\"agent_registry_export\":{FORMAT},…}}, the first line of a file written by `registryctl export`; to register a \
             single agent, use `registryctl register`"
        )
    })?;
    match value::<u32>(&fields, "agent_registry_export") {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => {
            return Err(format!(
                "the file has format {newer}, and this registryctl only reads format {FORMAT}: use the newer version that wrote it"
            ));
        }
        _ => return Err(format!("agent_registry_export: must be {FORMAT}, the version of the format")),
    }
    if fields.get("exported_at").is_some() && value::<Timestamp>(&fields, "exported_at").is_none() {
        return Err("exported_at: must be a time such as 2026-11-24T09:30:00Z".to_owned());
    }
    Ok(())
}

/// Checks all lines. Returns the first unknown field of a maintenance, with its line number.
pub(super) fn check<R: BufRead>(reader: R, now: Timestamp) -> Result<Option<(usize, String)>, Refused> {
    let mut lines = Lines::new(reader);
    read_header(&mut lines)?;
    let (mut errors, mut unknown) = (Errors::default(), None);
    let mut line_of: HashMap<String, usize> = HashMap::new();
    let (mut agents, mut end) = (0, None);
    while let Some(line) = lines.next()? {
        let number = line.number;
        if end.is_some() {
            errors.add(number, "unexpected line after the end of the export");
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
                        .add(number, &format!("agent_id: {:?} is already in line {first}", entry.agent_id()));
                }
            }
        }
    }
    match end {
        Some((number, stated)) if stated != agents => errors.add(
            number,
            &format!(
                "agents_exported is {stated}, but the file has {agents} agents: export again, or correct the number if you edited the file"
            ),
        ),
        Some(_) => {}
        None => errors.add(
            lines.number() + 1,
            "expected {\"agents_exported\":…}, the last line of an export: the file is truncated, export again",
        ),
    }
    errors.check().map(|()| unknown)
}
