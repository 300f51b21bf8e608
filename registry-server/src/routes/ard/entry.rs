//! The ARD entry of an agent.

use std::collections::HashSet;

use registry_sdk::contract::{CARD_MEDIA_TYPE, Capability, limits};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::site::Site;
use crate::registry::{FoundAgent, FoundAgents};

/// Media type of an agent's record, as sent by `GET /agents/{id}`.
const RECORD_TYPE: &str = "application/json";

/// Maximum number of representative queries. The specification requires at least `MIN_QUERIES`.
const MAX_QUERIES: usize = 5;
const MIN_QUERIES: usize = 2;

/// Size of a page in bytes after which further entries only have the required terms.
///
/// A page is created at once, and registrations may be long.
const PAGE_BYTES: usize = 64 * 1_024;

/// The document that describes an agent: its A2A agent card, or else the registry's record of it.
pub(super) struct Artifact {
    pub(super) media_type: &'static str,
    /// Path relative to the registry's URL.
    path: String,
}

impl Artifact {
    pub(super) fn of(agent: &FoundAgent) -> Self {
        let record = format!("agents/{}", agent.agent_id());
        if agent.has_card() {
            return Self { media_type: CARD_MEDIA_TYPE, path: format!("{record}/card") };
        }
        Self { media_type: RECORD_TYPE, path: record }
    }
}

/// An entry, which may be a result of a search.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    identifier: String,
    display_name: String,
    #[serde(rename = "type")]
    media_type: &'static str,
    url: String,
    #[serde(flatten)]
    details: Option<Details>,
    #[serde(flatten)]
    found: Option<Found>,
}

/// The optional terms of an entry. Empty lists are omitted, since the specification forbids them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    representative_queries: Vec<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
}

/// The terms that only search results have.
#[derive(Debug, Serialize)]
struct Found {
    /// From 0 to 100.
    score: u8,
    /// URL of the registry that found the entry.
    source: String,
}

impl Entry {
    /// Returns the complete entry of an agent.
    pub(super) fn complete(agent: &FoundAgent, site: &Site) -> Self {
        Self { details: Some(Details::of(agent)), ..Self::required(agent, site) }
    }

    /// Returns the entry with only the required terms.
    fn required(agent: &FoundAgent, site: &Site) -> Self {
        let Artifact { media_type, path } = Artifact::of(agent);
        let found = agent.score().map(|score| Found { score: percent(score), source: site.ard_url() });
        Self {
            identifier: site.identifier(agent.agent_id()),
            display_name: agent.name().to_owned(),
            media_type,
            url: site.url(&path),
            details: None,
            found,
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "scores are between 0 and 1")]
fn percent(score: f64) -> u8 {
    (score * 100.0).round() as u8
}

impl Details {
    fn of(agent: &FoundAgent) -> Self {
        let capabilities = agent.capabilities();
        Self {
            description: description(&capabilities),
            tags: distinct(capabilities.iter().flat_map(|capability| &capability.tags)),
            representative_queries: representative_queries(&capabilities),
            metadata: agent.metadata().into_iter().filter(|(_, value)| is_scalar(value)).collect(),
            capabilities: capabilities.into_iter().map(|capability| capability.name).collect(),
        }
    }
}

/// Whether a value may appear in metadata. The schema of ARD v0.9 forbids lists and objects.
fn is_scalar(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Object(_))
}

/// Joins the descriptions of all capabilities, up to the maximum length of one description.
fn description(capabilities: &[Capability]) -> String {
    let parts = capabilities.iter().map(|capability| {
        let title = capability.title.as_deref().unwrap_or(&capability.name);
        let said = Some(capability.description.trim()).filter(|said| !said.is_empty()).unwrap_or(title);
        said.strip_suffix('.').unwrap_or(said)
    });
    let text = parts.collect::<Vec<_>>().join("; ");
    match text.char_indices().nth(limits::DESCRIPTION) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

/// Returns the first examples of all capabilities, then the second examples, and so on.
///
/// Returns none if there are fewer than the specification's schema requires.
fn representative_queries(capabilities: &[Capability]) -> Vec<String> {
    let rounds = 0..limits::EXAMPLES;
    let examples =
        rounds.flat_map(|round| capabilities.iter().filter_map(move |one| one.examples.get(round)));
    let mut queries = distinct(examples);
    queries.truncate(if queries.len() < MIN_QUERIES { 0 } else { MAX_QUERIES });
    queries
}

/// Returns the distinct texts in the order of their first occurrence.
pub(super) fn distinct<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut seen = HashSet::new();
    texts.into_iter().filter(|text| seen.insert(*text)).cloned().collect()
}

/// The entries of a page, and the token of the next page.
pub(super) struct EntryPage {
    pub(super) entries: Vec<Box<RawValue>>,
    pub(super) next: Option<String>,
}

impl EntryPage {
    /// Encodes a page. Entries that would exceed its size only have the required terms.
    pub(super) fn new(found: &FoundAgents, site: &Site) -> Self {
        let mut room = PAGE_BYTES;
        let encode = |agent: &FoundAgent| {
            let complete = to_raw_value(&Entry::complete(agent, site)).ok();
            let complete = complete.filter(|entry| entry.get().len() <= room);
            // Text, numbers and lists always serialize, so no entry is omitted.
            let entry = complete.or_else(|| to_raw_value(&Entry::required(agent, site)).ok())?;
            room = room.saturating_sub(entry.get().len());
            Some(entry)
        };
        Self { entries: found.agents.iter().filter_map(encode).collect(), next: found.next.clone() }
    }
}
