//! `registryctl import` of an A2A agent card: one agent that does not know the registry.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use registry_sdk::a2a::{CardError, fetch_card, read_card, registration_of};
use registry_sdk::contract::{AgentCard, AgentRecord, Registration, ValidationError, limits};
use registry_sdk::{Error, RegistryClient};
use serde_json::value::RawValue;

use crate::output::{Output, print_reason};
use crate::source::{self, Source};
use crate::transfer;
use crate::{Failure, Outcome};

/// Maximum number of bytes to read to tell a card from an export.
const MAX_READ: u64 = 2 * limits::CARD_BYTES as u64;

/// Imports a card, or an export if the file is not a card.
pub(crate) async fn import(
    client: &RegistryClient,
    output: &Output,
    file: &Path,
    id: Option<String>,
    replaces: bool,
) -> Result<Outcome, Failure> {
    let name = file.display().to_string();
    let no_card = |error: CardError| Failure::Input(format!("{name} cannot be imported: {error}"));
    let registration = if let Some(url) = file.to_str().filter(|name| is_url(name)) {
        let fetched = fetch_card(client, url).await.map_err(|error| Failure::Input(error.to_string()))?;
        fetched.registration().map_err(no_card)?
    } else {
        let unreadable = |error| Failure::Input(format!("cannot read {name}: {error}"));
        let mut source = source::open(file).map_err(unreadable)?;
        match find_card(&mut source).map_err(unreadable)? {
            Some(card) => card.and_then(|card| registration_of(&card)).map_err(no_card)?,
            None if id.is_some() => {
                return Err(Failure::Input(format!(
                    "--id requires an A2A agent card, and {name} is not one"
                )));
            }
            None => return transfer::import(client, output, name, source, replaces).await,
        }
    };
    register(client, output, prepare(registration, id, &name)?, replaces).await
}

fn is_url(name: &str) -> bool {
    name.split_once("://").is_some_and(|(scheme, _)| {
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    })
}

/// Returns the card in a file, or the reason why the card is invalid; `None` if the file is not a card, but perhaps an export.
///
/// Leaves the source at its beginning.
fn find_card(source: &mut impl Source) -> io::Result<Option<Result<AgentCard, CardError>>> {
    let mut text = Vec::new();
    source.by_ref().take(MAX_READ).read_to_end(&mut text)?;
    source.rewind()?;
    // An export is a sequence of JSON values, and its header is the first.
    let begin = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mut values = serde_json::Deserializer::from_slice(begin).into_iter::<BTreeMap<String, &RawValue>>();
    let is_card = match values.next() {
        Some(Ok(fields)) => {
            let has = |field| fields.contains_key(field);
            has("name") && !has("agent_registry_export") && !has("agent_id")
        }
        // It may be a card that is malformed or too long.
        Some(Err(_)) => {
            let first_line = begin.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
            let is_header = String::from_utf8_lossy(first_line).contains("\"agent_registry_export\"");
            first_line.starts_with(b"{") && !is_header
        }
        None => false,
    };
    Ok(is_card.then(|| read_card(&text)))
}

/// Completes and validates a card's registration. Its agent sends no heartbeats, so the heartbeat interval is the longest allowed.
fn prepare(mut registration: Registration, id: Option<String>, name: &str) -> Result<Registration, Failure> {
    if let Some(id) = id {
        registration.agent_id = id;
    }
    registration.heartbeat_interval = Some(limits::HEARTBEAT_INTERVAL);
    registration.validate().map_err(|ValidationError(errors)| {
        let errors: String = errors.iter().map(|error| format!("\n  {error}")).collect();
        Failure::Input(format!("the agent in {name} cannot be registered, nothing was sent:{errors}"))
    })?;
    Ok(registration)
}

async fn register(
    client: &RegistryClient,
    output: &Output,
    registration: Registration,
    replaces: bool,
) -> Result<Outcome, Failure> {
    let agent_id = &registration.agent_id;
    match client.get_agent(agent_id).await {
        Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) if replaces => {}
        Ok(present) if is_same(&present, &registration) => {
            output.agent(&present)?;
            print_reason(&format!(
                "{agent_id} is already registered, nothing was changed: use --replace to renew it"
            ));
            return Ok(Outcome::Positive);
        }
        Ok(AgentRecord { agent_name, base_url, .. }) => {
            return Err(Failure::Input(format!(
                "{agent_id:?} is the id of another agent, {agent_name:?} at {base_url}, nothing was changed: use --id to register this \
                 agent under another id, or --replace to replace the other one"
            )));
        }
    }
    output.agent(&client.register(&registration).await?)?;
    output.note(
        "this agent sends no heartbeats: it goes offline in two days unless it is imported again with --replace",
    )?;
    Ok(Outcome::Positive)
}

fn is_same(present: &AgentRecord, registration: &Registration) -> bool {
    present.agent_name == registration.agent_name && present.base_url == registration.base_url
}
