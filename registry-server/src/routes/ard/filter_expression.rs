//! Filter expressions of `GET /ard/agents`, such as `type = 'application/json' AND createdAfter >
//! '2026-01-01'`.

use registry_sdk::contract::Timestamp;

use super::field::Field;
use super::query::Filter;
use super::site::Site;
use crate::registry::FoundAgent;
use crate::routes::problem::ApiError;

/// The conditions on the entries of a list.
#[derive(Clone, Debug, Default)]
pub(super) struct ListFilter {
    fields: Filter,
    /// In lower case.
    display_name: Option<String>,
    created_after: Option<Timestamp>,
}

impl ListFilter {
    /// Parses conditions separated by `AND`.
    pub(super) fn read(expression: &str) -> Result<Self, ApiError> {
        let (mut filter, mut rest) = (Self::default(), expression);
        loop {
            let (condition, after) = Condition::read(rest)?;
            filter.add(&condition)?;
            if after.is_empty() {
                return Ok(filter);
            }
            rest = strip_word(after, "AND")
                .ok_or_else(|| malformed(&format!("AND must follow {:?}", condition.value)))?;
        }
    }

    fn add(&mut self, condition: &Condition<'_>) -> Result<(), ApiError> {
        let Condition { field, is_after, value } = *condition;
        let any_of = || value.split(',').map(|one| one.trim().to_owned()).collect();
        match (field, is_after) {
            ("type", false) => self.fields.add(Field::Type, any_of()),
            ("publisherId", false) => self.fields.add(Field::Publisher, any_of()),
            ("displayName", false) => self.display_name = Some(value.to_lowercase()),
            ("createdAfter", _) => self.created_after = Some(read_time(value)?),
            ("type" | "publisherId" | "displayName", true) => {
                return Err(malformed(&format!("{field} can only be compared with =")));
            }
            _ => {
                let detail = format!(
                    "{field:?} is not supported; use type, publisherId, displayName or createdAfter (the registry does not \
                     record when an agent was last updated)"
                );
                return Err(malformed(&detail));
            }
        }
        Ok(())
    }

    /// Whether an agent has an entry that meets all conditions.
    pub(super) fn accepts(&self, agent: &FoundAgent, site: &Site) -> bool {
        self.created_after.is_none_or(|time| agent.registered_at() > time)
            && self.display_name.as_ref().is_none_or(|name| agent.name().to_lowercase() == *name)
            && self.fields.accepts(agent, site)
    }
}

/// A comparison: a field, `=` or `>`, and a value.
#[derive(Clone, Copy)]
struct Condition<'a> {
    field: &'a str,
    is_after: bool,
    value: &'a str,
}

impl<'a> Condition<'a> {
    /// Parses the first condition. Also returns the rest of the text.
    fn read(text: &'a str) -> Result<(Self, &'a str), ApiError> {
        let text = text.trim_start();
        let (field, rest) = text.split_at(text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len()));
        let rest = rest.trim_start();
        let is_after = rest.starts_with('>');
        let rest = rest.strip_prefix(['=', '>']).filter(|_| !field.is_empty()).ok_or_else(|| {
            malformed(&format!("expected a condition such as type = 'application/json' at {text:?}"))
        })?;
        let rest = rest.trim_start();
        let quoted = ['\'', '"'].into_iter().find_map(|quote| rest.strip_prefix(quote)?.split_once(quote));
        let bare = || rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        let (value, after) = quoted.unwrap_or_else(bare);
        if value.is_empty() || (quoted.is_none() && value.contains(['\'', '"'])) {
            return Err(malformed(&format!("{field} has no value, or a quotation mark is missing")));
        }
        Ok((Self { field, is_after, value }, after.trim()))
    }
}

/// Strips a word in any case from the beginning of a text.
fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (first, rest) = text.split_at_checked(word.len())?;
    (first.eq_ignore_ascii_case(word) && rest.starts_with(char::is_whitespace)).then_some(rest)
}

/// Parses a time, or a date as the beginning of that day.
fn read_time(text: &str) -> Result<Timestamp, ApiError> {
    let time = text.parse().or_else(|_| format!("{text}T00:00:00Z").parse::<Timestamp>());
    time.map_err(|_| malformed(&format!("{text:?} is not a time such as 2026-01-31T09:30:00Z")))
}

fn malformed(detail: &str) -> ApiError {
    ApiError::bad_request(format!("filter: {detail}"))
}
