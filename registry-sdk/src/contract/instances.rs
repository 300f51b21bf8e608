//! Ownership of an agent's id if several processes use the same one.
//!
//! The youngest running process owns the id, in whatever order the requests arrive. The registry compares ages and not the
//! clocks of the processes' hosts: a process says how long ago it started, and the registry converts that to its own time when
//! it first sees the process.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// Maximum number of processes that are remembered for one agent.
const REMEMBERED: usize = 8;

/// A process may be recorded as up to this much younger than it is; only a larger error is worth a write.
const TOLERANCE: Duration = Duration::from_millis(100);

/// A time that lies further in the future was recorded before the clock was set back. A smaller difference comes from another
/// server that recorded the time while this request was in flight.
const AHEAD: Duration = Duration::from_secs(60);

/// The process that owns an agent's id, named in a 409.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Owner {
    /// The process's `instance_id`, if it registered with one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub instance_id: Option<String>,
    /// The URL at which the process can be reached.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub base_url: String,
}

impl Owner {
    /// Creates an owner from its `instance_id` and URL.
    #[must_use]
    pub fn new(instance_id: Option<String>, base_url: impl Into<String>) -> Self {
        Self { instance_id, base_url: base_url.into() }
    }
}

/// A process that registered with the agent's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Instance {
    id: String,
    started_at: Timestamp,
    /// When the process was shut down. Its late requests change nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
}

/// The last few processes that used an agent's id. The server and the mock registry decide ownership with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instances(Vec<Instance>);

impl Instances {
    /// Decides whether a registration may have the id, and records the process that sent it.
    ///
    /// `age` is how long ago the process started; a registration without an age is always accepted. `owner` is the process that
    /// has the id now, unless it is past its deadline. `arrived` is when the request arrived.
    #[must_use]
    pub fn claim(
        &mut self,
        claimant: &str,
        age: Option<Duration>,
        owner: Option<&str>,
        arrived: Timestamp,
    ) -> bool {
        self.0.retain(|one| one.ended_at.unwrap_or(one.started_at).since(arrived) <= AHEAD);
        let started = arrived.saturating_sub(age.unwrap_or_default());
        let started_at = match self.find(claimant) {
            // A delayed request makes its process look younger than it is, and nothing makes a process look older.
            Some(Instance { ended_at: None, started_at, .. }) => *started_at.min(&started),
            // This is a late request of the process that ended, and not of a later process with the same id.
            Some(Instance { ended_at: Some(ended_at), .. }) if age.is_some() && started <= *ended_at => {
                return false;
            }
            _ => started,
        };
        let rival = owner.filter(|owner| *owner != claimant && !self.has_ended(owner));
        let rival = rival.and_then(|owner| self.find(owner));
        let is_older = rival.is_some_and(|rival| started_at <= rival.started_at);
        self.remember(Instance { id: claimant.to_owned(), started_at, ended_at: None }, owner);
        age.is_none() || !is_older
    }

    /// Records that a process was shut down. It need not be the owner.
    pub fn end(&mut self, instance_id: &str, now: Timestamp) {
        let started_at = self.find(instance_id).map_or(now, |known| known.started_at);
        self.remember(
            Instance { id: instance_id.to_owned(), started_at, ended_at: Some(now) },
            Some(instance_id),
        );
    }

    /// Returns whether a process was shut down.
    #[must_use]
    pub fn has_ended(&self, instance_id: &str) -> bool {
        self.find(instance_id).is_some_and(|known| known.ended_at.is_some())
    }

    /// Returns whether a registration with this age and arrival time says nothing new about its process.
    #[must_use]
    pub fn is_noted(&self, instance_id: &str, age: Option<Duration>, arrived: Timestamp) -> bool {
        self.find(instance_id).is_some_and(|known| {
            let too_young =
                age.map_or(Duration::ZERO, |age| known.started_at.since(arrived.saturating_sub(age)));
            known.ended_at.is_none() && too_young <= TOLERANCE
        })
    }

    /// Returns whether a process is known and was not shut down.
    #[must_use]
    pub fn is_running(&self, instance_id: &str) -> bool {
        self.find(instance_id).is_some_and(|known| known.ended_at.is_none())
    }

    fn find(&self, instance_id: &str) -> Option<&Instance> {
        self.0.iter().find(|one| one.id == instance_id)
    }

    /// Records a process. Forgets the process that was seen first if there are too many, but never the owner.
    fn remember(&mut self, instance: Instance, owner: Option<&str>) {
        match self.0.iter_mut().find(|one| one.id == instance.id) {
            Some(known) => *known = instance,
            None => self.0.push(instance),
        }
        if self.0.len() > REMEMBERED
            && let Some(oldest) = self.0.iter().position(|one| Some(one.id.as_str()) != owner)
        {
            self.0.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1_000)
    }

    #[expect(clippy::unnecessary_wraps, reason = "an age may be missing")]
    fn age(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn younger_process_wins_in_either_order() {
        let mut instances = Instances::default();
        assert!(instances.claim("old", age(50), None, at(100)));
        assert!(instances.claim("young", age(10), Some("old"), at(100)));
        assert!(!instances.claim("old", age(60), Some("young"), at(110)));
        let mut instances = Instances::default();
        assert!(instances.claim("young", age(10), None, at(100)));
        assert!(!instances.claim("old", age(50), Some("young"), at(100)));
    }

    #[test]
    fn owner_keeps_the_id_on_a_tie() {
        let mut instances = Instances::default();
        assert!(instances.claim("one", age(10), None, at(100)));
        assert!(!instances.claim("two", age(10), Some("one"), at(100)));
        assert!(instances.claim("one", age(10), Some("one"), at(100)));
    }

    #[test]
    fn start_of_a_process_never_moves_to_a_later_time() {
        let mut instances = Instances::default();
        assert!(instances.claim("one", age(50), None, at(100)));
        assert!(instances.claim("one", age(0), Some("one"), at(100)));
        assert!(instances.claim("two", age(30), Some("one"), at(100)), "one started before two");
        assert!(!instances.claim("three", age(40), Some("two"), at(100)));
        assert!(!instances.claim("three", age(0), Some("two"), at(100)), "it was seen with another age");
        // The first registration of this process was delayed, and the next one shows it.
        assert!(instances.claim("late", age(10), Some("two"), at(100)));
        assert!(instances.claim("late", age(60), Some("late"), at(110)));
        assert!(instances.claim("two", age(40), Some("late"), at(110)));
    }

    #[test]
    fn registration_says_something_new_if_its_process_is_older_than_recorded() {
        let mut instances = Instances::default();
        assert!(!instances.is_noted("one", age(10), at(100)), "it was never seen");
        assert!(instances.claim("one", age(10), None, at(100)));
        for (age, is_noted) in [(None, true), (age(10), true), (age(5), true), (age(11), false)] {
            assert_eq!(instances.is_noted("one", age, at(100)), is_noted, "{age:?}");
        }
        assert!(instances.is_noted("one", Some(Duration::from_millis(10_100)), at(100)));
        assert!(!instances.is_noted("one", Some(Duration::from_millis(10_101)), at(100)));
        instances.end("one", at(101));
        assert!(!instances.is_noted("one", None, at(102)));
    }

    #[test]
    fn owner_that_is_gone_or_has_no_age_loses_the_id() {
        let mut instances = Instances::default();
        assert!(instances.claim("young", age(10), None, at(100)));
        assert!(instances.claim("old", age(50), None, at(100)), "the owner is past its deadline");
        assert!(!instances.claim("older", age(60), Some("old"), at(100)));
        assert!(instances.claim("older", None, Some("old"), at(100)), "it says no age");
        assert!(instances.claim("any", age(90), Some("never-seen"), at(100)), "the owner's age is not known");
    }

    #[test]
    fn process_stays_shut_down_until_it_starts_again() {
        let mut instances = Instances::default();
        assert!(instances.claim("pod-0", age(10), None, at(100)));
        instances.end("pod-0", at(110));
        assert!(instances.has_ended("pod-0") && !instances.is_running("pod-0"));
        assert!(!instances.claim("pod-0", age(20), Some("pod-0"), at(110)), "a late request");
        assert!(!instances.claim("pod-0", age(15), Some("pod-0"), at(125)), "it started as the other ended");
        assert!(instances.claim("pod-0", age(14), Some("pod-0"), at(125)), "a later start");
        assert!(instances.is_running("pod-0"));
        instances.end("pod-0", at(130));
        assert!(instances.claim("old", age(100), Some("pod-0"), at(130)), "the owner has ended");
        assert!(instances.claim("pod-0", None, Some("old"), at(131)), "it says no age");
        assert!(instances.is_running("pod-0"));
    }

    #[test]
    fn unknown_process_can_be_shut_down() {
        let mut instances = Instances::default();
        instances.end("one", at(100));
        assert!(!instances.claim("one", age(5), None, at(101)));
        assert!(instances.claim("one", age(0), None, at(101)));
    }

    #[test]
    fn oldest_processes_are_forgotten_but_never_the_owner() {
        let mut instances = Instances::default();
        assert!(instances.claim("owner", age(1), None, at(100)));
        for number in 0..20 {
            assert!(!instances.claim(&format!("old-{number}"), age(50), Some("owner"), at(100)));
        }
        assert_eq!(instances.0.len(), REMEMBERED);
        assert!(instances.is_running("owner") && instances.is_running("old-19"));
        assert!(!instances.is_running("old-0"));
    }

    #[test]
    fn times_recorded_before_the_clock_was_set_back_are_ignored() {
        let mut instances = Instances::default();
        assert!(instances.claim("owner", age(1), None, at(162)));
        instances.end("ended", at(161));
        assert!(instances.claim("young", age(0), Some("owner"), at(100)));
        assert!(instances.claim("ended", age(50), None, at(100)));
    }

    #[test]
    fn times_that_another_server_recorded_a_moment_later_count() {
        let mut instances = Instances::default();
        assert!(instances.claim("owner", age(1), None, at(161)));
        instances.end("ended", at(160));
        assert!(!instances.claim("ended", age(50), None, at(100)));
        assert!(!instances.claim("old", age(0), Some("owner"), at(101)));
    }
}
