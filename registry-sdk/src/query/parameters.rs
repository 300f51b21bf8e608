//! The parameters of lists and searches in a URL.

use url::form_urlencoded;

use super::filter::{AgentFilter, MetadataFilter};
use super::match_mode::{MatchMode, ParseMatchModeError};
use crate::contract::{AgentStatus, ParseStatusError, limits};

/// An invalid parameter of a request, and why it is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidParameter(pub(super) String);

/// All parameters of a list or a search.
#[derive(Clone, Debug, Default)]
pub(super) struct Parameters {
    pub(super) q: Option<String>,
    /// This field and the next two are not parsed yet, because they have no meaning in a list.
    pub(super) match_mode: Option<String>,
    pub(super) min_score: Option<String>,
    pub(super) description_only: Option<String>,
    pub(super) filter: AgentFilter,
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<String>,
}

impl Parameters {
    /// Reads a query. Unknown parameters are ignored, because later versions may have more.
    pub(super) fn read(query: &str) -> Result<Self, InvalidParameter> {
        let mut all = Self::default();
        let Self { q, match_mode, min_score, description_only, filter, limit, cursor } = &mut all;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "q" => set("q", q, value.into_owned())?,
                "match" => set("match", match_mode, value.into_owned())?,
                "min_score" => set("min_score", min_score, value.into_owned())?,
                "description_only" => set("description_only", description_only, value.into_owned())?,
                "status" => set("status", &mut filter.status, read_status(&value)?)?,
                "healthy" => set("healthy", &mut filter.healthy, read_bool("healthy", &value)?)?,
                "capability" => {
                    check_length("capability", &value, limits::CAPABILITY_NAME)?;
                    set("capability", &mut filter.capability, value.into_owned())?;
                }
                "tag" => {
                    check_length("tag", &value, limits::TAG)?;
                    push("tag", &mut filter.tags, value.into_owned())?;
                }
                "limit" => set("limit", limit, read_limit(&value)?)?,
                "cursor" => set("cursor", cursor, value.into_owned())?,
                name => match name.strip_prefix("metadata") {
                    Some("" | ".") => return Err(invalid("metadata needs a key: metadata.KEY=VALUE")),
                    Some(path) if path.starts_with('.') => {
                        let (path, value) = (path[1..].to_owned(), value.into_owned());
                        push("metadata", &mut filter.metadata, MetadataFilter { path, value })?;
                    }
                    _ => {}
                },
            }
        }
        Ok(all)
    }

    /// Returns the parameters that are set, in the order in which they are written.
    pub(super) fn pairs(self) -> Vec<(String, String)> {
        let Self { q, match_mode, min_score, description_only, filter, limit, cursor } = self;
        let AgentFilter { status, healthy, capability, tags, metadata } = filter;
        let pair = |name: &str, value: String| (name.to_owned(), value);
        let mut pairs = Vec::new();
        pairs.extend(q.map(|q| pair("q", q)));
        pairs.extend(match_mode.map(|mode| pair("match", mode)));
        pairs.extend(min_score.map(|score| pair("min_score", score)));
        pairs.extend(description_only.map(|is_found| pair("description_only", is_found)));
        pairs.extend(status.map(|status| pair("status", status.to_string())));
        pairs.extend(healthy.map(|healthy| pair("healthy", healthy.to_string())));
        pairs.extend(capability.map(|name| pair("capability", name)));
        pairs.extend(tags.into_iter().map(|tag| pair("tag", tag)));
        pairs.extend(metadata.into_iter().map(|one| (format!("metadata.{}", one.path), one.value)));
        pairs.extend(limit.map(|limit| pair("limit", limit.to_string())));
        pairs.extend(cursor.map(|cursor| pair("cursor", cursor)));
        pairs
    }

    /// Formats the parameters as a query.
    pub(super) fn write(self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(self.pairs()).finish()
    }
}

pub(super) fn invalid(message: impl Into<String>) -> InvalidParameter {
    InvalidParameter(message.into())
}

pub(super) fn set<T>(name: &str, parameter: &mut Option<T>, value: T) -> Result<(), InvalidParameter> {
    match parameter.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("{name} may be given only once"))),
    }
}

/// Adds a value. The number of values is limited to that of a capability's tags.
fn push<T>(name: &str, values: &mut Vec<T>, value: T) -> Result<(), InvalidParameter> {
    let most = limits::TAGS;
    if values.len() == most {
        return Err(invalid(format!("{name} may be given up to {most} times")));
    }
    values.push(value);
    Ok(())
}

fn check_length(name: &str, value: &str, most: usize) -> Result<(), InvalidParameter> {
    match value.chars().count() {
        length if (1..=most).contains(&length) => Ok(()),
        length => Err(invalid(format!("{name} has to have 1 to {most} characters, has {length}"))),
    }
}

fn read_status(value: &str) -> Result<AgentStatus, InvalidParameter> {
    value.parse().map_err(|error: ParseStatusError| invalid(error.to_string()))
}

pub(super) fn read_bool(name: &str, value: &str) -> Result<bool, InvalidParameter> {
    value.parse().map_err(|_| invalid(format!("{name} has to be true or false")))
}

pub(super) fn read_match_mode(value: &str) -> Result<MatchMode, InvalidParameter> {
    value.parse().map_err(|error: ParseMatchModeError| invalid(format!("match: {error}")))
}

pub(super) fn read_min_score(value: &str) -> Result<f64, InvalidParameter> {
    let score = value.parse().ok().filter(|score| (0.0..=1.0).contains(score));
    score.ok_or_else(|| invalid(format!("min_score has to be a number between 0 and 1, is {value:?}")))
}

fn read_limit(value: &str) -> Result<usize, InvalidParameter> {
    let most = limits::PAGE;
    let limit = value.parse().ok().filter(|limit| (1..=most).contains(limit));
    limit.ok_or_else(|| invalid(format!("limit has to be 1 to {most}, is {value:?}")))
}
