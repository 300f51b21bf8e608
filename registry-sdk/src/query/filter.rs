//! Filters of lists and searches. Server, mock registry and directory share them, so that all of them give the same results.

use serde_json::{Map, Number, Value};

use crate::contract::{AgentRecord, AgentStatus, Capability, CapabilityMatch};

/// Conditions on the agents that a list or a search returns. An agent has to meet all of them. Default: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AgentFilter {
    /// Only agents with this status.
    pub status: Option<AgentStatus>,
    /// Only agents whose `healthy` field has this value or is missing.
    pub healthy: Option<bool>,
    /// Only agents with a capability of exactly this name. A search matches that capability.
    pub capability: Option<String>,
    /// Only agents with a capability that has all these tags. A search matches such a capability.
    pub tags: Vec<String>,
    /// Only agents whose metadata has all these values.
    pub metadata: Vec<MetadataFilter>,
}

/// A value in an agent's metadata.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetadataFilter {
    /// The keys that lead to the value, joined by dots. A key may itself contain dots.
    pub path: String,
    /// The value: a text, or a number or boolean as in JSON.
    pub value: String,
}

/// The parts of a filter, for a registry that stores agents in a form of its own.
pub trait FilterParts {
    /// Returns whether agents with this status and health pass.
    fn accepts_status(&self, status: AgentStatus, healthy: Option<bool>) -> bool;

    /// Returns whether the filter depends on capabilities.
    fn has_capability(&self) -> bool;

    /// Returns whether a capability has the name and the tags.
    fn accepts_capability(&self, capability: &Capability) -> bool;

    /// Returns whether metadata has all the values.
    fn accepts_metadata(&self, metadata: &Map<String, Value>) -> bool;
}

impl FilterParts for AgentFilter {
    fn accepts_status(&self, status: AgentStatus, healthy: Option<bool>) -> bool {
        self.status.is_none_or(|wanted| wanted == status)
            && self.healthy.zip(healthy).is_none_or(|(wanted, reported)| wanted == reported)
    }

    fn has_capability(&self) -> bool {
        self.capability.is_some() || !self.tags.is_empty()
    }

    fn accepts_capability(&self, capability: &Capability) -> bool {
        self.accepts_name_and_tags(&capability.name, &capability.tags)
    }

    fn accepts_metadata(&self, metadata: &Map<String, Value>) -> bool {
        self.metadata.iter().all(|MetadataFilter { path, value }| has_value(metadata, path, value))
    }
}

impl AgentFilter {
    /// Returns whether an agent passes.
    pub(crate) fn accepts_record(&self, agent: &AgentRecord) -> bool {
        let mut capabilities = agent.capabilities.iter();
        self.accepts_status(agent.status, agent.healthy)
            && (!self.has_capability() || capabilities.any(|one| self.accepts_capability(one)))
            && self.accepts_metadata(&agent.metadata)
    }

    /// Returns whether a match passes, as far as its fields show that: it has no metadata.
    pub(crate) fn accepts_match(&self, found: &CapabilityMatch) -> bool {
        self.accepts_status(found.status, found.healthy)
            && self.accepts_name_and_tags(&found.capability, &found.tags)
    }

    fn accepts_name_and_tags(&self, name: &str, tags: &[String]) -> bool {
        self.capability.as_deref().is_none_or(|wanted| wanted == name)
            && self.tags.iter().all(|tag| tags.contains(tag))
    }
}

/// Returns whether a path leads to a value. Each key ends at one of the path's dots or at its end, so every way to split the
/// path is tried.
fn has_value(object: &Map<String, Value>, path: &str, wanted: &str) -> bool {
    let mut ends = path.match_indices('.').map(|(dot, _)| dot).chain([path.len()]);
    ends.any(|end| match object.get(&path[..end]) {
        Some(value) if end == path.len() => is_value(value, wanted),
        // The recursion is bounded: registered metadata has at most 64 levels.
        Some(Value::Object(inner)) => has_value(inner, &path[end + 1..], wanted),
        _ => false,
    })
}

fn is_value(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Bool(is_true) => wanted == if *is_true { "true" } else { "false" },
        Value::Number(number) => wanted.parse().is_ok_and(|wanted| is_same_number(number, &wanted)),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Returns whether two numbers are equal, however they are written.
fn is_same_number(one: &Number, other: &Number) -> bool {
    // As floats, neighbouring large integers would be equal.
    one == other || ((one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64())
}

/// The methods that lists and searches share: filter, limit and cursor.
macro_rules! query_methods {
    () => {
        /// Only agents with this status.
        #[must_use]
        pub fn status(mut self, status: AgentStatus) -> Self {
            self.filter.status = Some(status);
            self
        }

        /// Only healthy agents (`true`) or only unhealthy ones (`false`), by their `healthy` field.
        ///
        /// The registry filters before it applies the limit. An older registry ignores this and the following filters. The
        /// client then drops agents that do not pass, so agents beyond the limit are missed. An agent without the field is
        /// kept, because its health is unknown.
        #[must_use]
        pub fn healthy(mut self, healthy: bool) -> Self {
            self.filter.healthy = Some(healthy);
            self
        }

        /// Only agents with a capability of exactly this name. A search matches that capability.
        #[must_use]
        pub fn capability(mut self, name: impl Into<String>) -> Self {
            self.filter.capability = Some(name.into());
            self
        }

        /// Only agents with a capability that has this tag and all other requested tags. A search matches such a capability.
        #[must_use]
        pub fn tag(mut self, tag: impl Into<String>) -> Self {
            self.filter.tags.push(tag.into());
            self
        }

        /// Only agents whose metadata has this text, number or boolean at a path: keys joined by dots.
        ///
        /// `8` equals the text `8` and the number 8, even if that is written `8.0`. Lists, objects and `null` never match. A
        /// key may itself contain dots: `a.b.c` also leads to the value in `{"a": {"b.c": …}}`.
        ///
        /// Matches have no metadata, so a search cannot detect that an older registry ignored this filter.
        #[must_use]
        pub fn metadata(mut self, path: impl Into<String>, value: impl ToString) -> Self {
            self.filter.metadata.push(MetadataFilter { path: path.into(), value: value.to_string() });
            self
        }

        /// Sets the maximum number of results on a page, up to 1,000.
        #[must_use]
        pub fn limit(mut self, limit: usize) -> Self {
            self.limit = Some(limit);
            self
        }

        /// Continues after the page that returned this cursor.
        #[must_use]
        pub fn after(mut self, cursor: impl Into<String>) -> Self {
            self.cursor = Some(cursor.into());
            self
        }
    };
}

pub(super) use query_methods;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_compared_by_path_and_value() {
        let metadata = json!({
            "team": "platform", "empty": "", "gpu": true, "text": "true", "cores": 8, "port": "8080", "load": 0.25,
            "large": 9_007_199_254_740_993_u64, "nothing": null, "list": ["a"], "object": {"a": 1},
            "zone": {"region": {"name": "eu"}, "region.name": "us", "": {"x": 1}},
            "app.kubernetes.io/name": "agent", "a": {"b": 1}, "a.b": 2, "é\"": {"🦀": "crab"},
        });
        let metadata = metadata.as_object().unwrap();
        let found = |path: &str, value: &str| has_value(metadata, path, value);
        for (path, value) in [
            ("team", "platform"),
            ("empty", ""),
            ("gpu", "true"),
            ("text", "true"),
            ("cores", "8"),
            ("cores", "8.0"),
            ("cores", "0.8e1"),
            ("port", "8080"),
            ("load", "0.25"),
            ("load", "25e-2"),
            ("large", "9007199254740993"),
            ("object.a", "1"),
            ("zone.region.name", "eu"),
            ("zone.region.name", "us"),
            ("zone..x", "1"),
            ("app.kubernetes.io/name", "agent"),
            ("a.b", "1"),
            ("a.b", "2"),
            ("é\".🦀", "crab"),
        ] {
            assert!(found(path, value), "{path}={value}");
        }
        for (path, value) in [
            ("team", "Platform"),
            ("team", "\"platform\""),
            ("team", ""),
            ("gpu", "1"),
            ("gpu", "True"),
            ("cores", ""),
            ("cores", "08"),
            ("cores", "+8"),
            ("cores", " 8"),
            ("port", "8080.0"),
            ("large", "9007199254740992"),
            ("nothing", "null"),
            ("nothing", ""),
            ("list", "a"),
            ("list.0", "a"),
            ("object", "{\"a\":1}"),
            ("zone.region", "eu"),
            ("zone.", "1"),
            (".team", "platform"),
            ("team.", "platform"),
            ("missing", ""),
        ] {
            assert!(!found(path, value), "{path}={value}");
        }
    }

    #[test]
    fn name_and_tags_have_to_be_those_of_one_capability() {
        let mut agent = AgentRecord::new("a", AgentStatus::Active);
        agent.capabilities = vec![
            Capability::new("review").tag("rust").tag("fast"),
            Capability::new("build").tag("rust").tag("slow"),
        ];
        let accepts = |capability: Option<&str>, tags: &[&str]| {
            let capability = capability.map(str::to_owned);
            let tags = tags.iter().map(ToString::to_string).collect();
            AgentFilter { capability, tags, ..AgentFilter::default() }.accepts_record(&agent)
        };
        assert!(accepts(None, &[]) && accepts(None, &["rust", "fast"]) && accepts(Some("build"), &["slow"]));
        assert!(!accepts(None, &["fast", "slow"]) && !accepts(Some("build"), &["fast"]));
        assert!(!accepts(Some("Build"), &[]) && !accepts(Some("buil"), &[]) && !accepts(None, &["Rust"]));
    }
}
