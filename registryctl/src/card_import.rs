//! `registryctl import` of an A2A agent card: one agent, which knows nothing of the registry.

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

/// How much of a file shows whether it is a card.
const MAX_READ: u64 = 2 * limits::CARD_BYTES as u64;

/// Imports a card, or the export that the file is otherwise.
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
                return Err(Failure::Input(format!("--id is for an A2A agent card, and {name} is none")));
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

/// Returns the card that a file is, or what is wrong with it. `None` if it is something else: an export, perhaps. It is read from its
/// beginning, and can be read again.
fn find_card(source: &mut impl Source) -> io::Result<Option<Result<AgentCard, CardError>>> {
    let mut text = Vec::new();
    source.by_ref().take(MAX_READ).read_to_end(&mut text)?;
    source.rewind()?;
    // An export has several values, the first of which is its header.
    let begin = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mut values = serde_json::Deserializer::from_slice(begin).into_iter::<BTreeMap<String, &RawValue>>();
    let is_card = match values.next() {
        Some(Ok(fields)) => {
            let has = |field| fields.contains_key(field);
            has("name") && !has("agent_registry_export") && !has("agent_id")
        }
        // Perhaps it is a card that is broken, or longer than a card may be.
        Some(Err(_)) => {
            let first_line = begin.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
            let is_header = String::from_utf8_lossy(first_line).contains("\"agent_registry_export\"");
            first_line.starts_with(b"{") && !is_header
        }
        None => false,
    };
    Ok(is_card.then(|| read_card(&text)))
}

/// Completes the registration by what the agent does not say: it sends no heartbeats, so they are not expected for as long as possible.
fn prepare(mut registration: Registration, id: Option<String>, name: &str) -> Result<Registration, Failure> {
    if let Some(id) = id {
        registration.agent_id = id;
    }
    registration.heartbeat_interval = Some(limits::HEARTBEAT_INTERVAL);
    registration.validate().map_err(|ValidationError(errors)| {
        let errors: String = errors.iter().map(|error| format!("\n  {error}")).collect();
        Failure::Input(format!("the agent of {name} cannot be registered, and nothing was sent:{errors}"))
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
            print_reason(&format!("{agent_id} is registered already and left as it is: --replace renews it"));
            return Ok(Outcome::Positive);
        }
        Ok(AgentRecord { agent_name, base_url, .. }) => {
            return Err(Failure::Input(format!(
                "{agent_id:?} is the id of another agent, {agent_name:?} at {base_url}, which is left as it is: --id registers this one \
                 under another id, --replace replaces that one"
            )));
        }
    }
    output.agent(&client.register(&registration).await?)?;
    output.note(
        "it sends no heartbeats: unless it is imported again with --replace, it goes offline in two days",
    )?;
    Ok(Outcome::Positive)
}

fn is_same(present: &AgentRecord, registration: &Registration) -> bool {
    present.agent_name == registration.agent_name && present.base_url == registration.base_url
}
