//! Conversion of a card to a registration.

use std::collections::HashSet;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use url::Url;

use super::document::{Document, Skill};
use super::error::CardError;
use crate::contract::{AgentCard, Capability, Registration, limits};

/// Name of a skill that has neither an id nor a name.
const NAMELESS: &str = "skill";

/// Returns the registration that a card describes. It contains the card.
///
/// | of the card | of the registration |
/// |---|---|
/// | `name` | `agent_name`; the `agent_id` is made from it, and can be replaced |
/// | the first of the `supportedInterfaces` with an http or https URL that is not gRPC (version 0.3: `url`, then `additionalInterfaces`) | `base_url` |
/// | each of the `skills`: `id`, `name`, `description`, `tags`, `examples` | a capability: `name`, `title`, `description`, `tags`, `examples` |
///
/// A card has no limits, so the fields of the registration are cut to those of the contract: strings at a character boundary, and lists after
/// their first items. The card itself is not changed. Capabilities with the same name get numbers (`-2`). This function does not check whether
/// a registry accepts the URL: see [`Registration::validate`].
///
/// ```
/// use registry_sdk::a2a::registration_of;
///
/// let card = r#"{
///     "name": "Recipe Agent",
///     "supportedInterfaces": [{"url": "https://recipes.example/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
///     "skills": [{"id": "find-recipe", "name": "Finds recipes", "tags": ["cooking"]}]
/// }"#;
/// let registration = registration_of(&card.parse()?)?;
/// assert_eq!((&*registration.agent_id, &*registration.base_url), ("recipe-agent", "https://recipes.example/a2a"));
/// assert_eq!(registration.capabilities[0].title.as_deref(), Some("Finds recipes"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`CardError::Invalid`] if the document is not a card, [`CardError::NoHttpInterface`] if the agent cannot be called over HTTP.
pub fn registration_of(card: &AgentCard) -> Result<Registration, CardError> {
    let document = Document::read(card)?;
    let name = cut(&document.field::<String>("name")?.unwrap_or_default(), limits::AGENT_NAME);
    if name.is_empty() {
        return Err(CardError::Invalid("it has no `name`".to_owned()));
    }
    let base_url = document
        .http_url()
        .map_err(|interfaces| CardError::NoHttpInterface { name: name.clone(), interfaces })?;
    let agent_id = id_of(&name).or_else(|| id_of(Url::parse(base_url).ok()?.host_str()?));
    let agent_id = agent_id.unwrap_or_else(|| "agent".to_owned());
    let mut registration = Registration::new(agent_id, &*name, base_url).card(card.clone());
    let mut names = HashSet::new();
    let skills: Vec<Skill> = document.field("skills")?.unwrap_or_default();
    let skills = skills.iter().take(limits::CAPABILITIES);
    registration.capabilities = skills.map(|skill| capability(skill, &mut names)).collect();
    Ok(registration)
}

/// Returns the capability of a skill. `names` has the names of the capabilities before it.
fn capability(skill: &Skill, names: &mut HashSet<String>) -> Capability {
    let text = |text: &Option<String>, most| cut(text.as_deref().unwrap_or_default(), most);
    let texts = |list: &[String], most, most_characters| {
        let texts = list.iter().map(|text| cut(text, most_characters)).filter(|text| !text.is_empty());
        texts.take(most).collect()
    };
    let title = Some(text(&skill.name, limits::TITLE)).filter(|title| !title.is_empty());
    let id = Some(text(&skill.id, limits::CAPABILITY_NAME)).filter(|id| !id.is_empty());
    let name = distinct(id.as_deref().or(title.as_deref()).unwrap_or(NAMELESS), names);
    let mut capability = Capability::new(name).description(text(&skill.description, limits::DESCRIPTION));
    capability.title = title;
    capability.tags = texts(&skill.tags, limits::TAGS, limits::TAG);
    capability.examples = texts(&skill.examples, limits::EXAMPLES, limits::EXAMPLE);
    capability
}

/// Returns a name that is not in `names`, and adds it to them.
fn distinct(name: &str, names: &mut HashSet<String>) -> String {
    let mut chosen = name.to_owned();
    let mut number = 2;
    while !names.insert(chosen.clone()) {
        let suffix = format!("-{number}");
        chosen = cut(name, limits::CAPABILITY_NAME - suffix.len()) + &suffix;
        number += 1;
    }
    chosen
}

/// Returns the beginning of a text, without surrounding white space and without NUL characters, which a registration cannot have.
fn cut(text: &str, characters: usize) -> String {
    let text = text.replace('\0', "");
    match text.trim().char_indices().nth(characters) {
        Some((end, _)) => text.trim()[..end].trim_end().to_owned(),
        None => text.trim().to_owned(),
    }
}

/// Returns an agent id made from a name: "Rezept-Agent für Köche" becomes `rezept-agent-fur-koche`. Returns `None` if the name has no
/// character that an id can have.
fn id_of(name: &str) -> Option<String> {
    let mut id = String::new();
    for letter in name.nfkd().filter(|letter| !is_combining_mark(*letter)) {
        let is_ordinary = letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_') && !id.is_empty();
        match id.chars().last() {
            _ if is_ordinary => id.push(letter.to_ascii_lowercase()),
            Some('-') | None => {}
            Some(_) => id.push('-'),
        }
    }
    id.truncate(limits::AGENT_ID);
    id.truncate(id.trim_end_matches(['-', '.', '_']).len());
    Some(id).filter(|id| !id.is_empty())
}
