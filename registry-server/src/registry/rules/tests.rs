//! The rules, one change at a time.

use registry_sdk::contract::{Capability, Instances, Registration};

use super::*;
use crate::store::{Capabilities, Metadata};

const TIMEOUT: Duration = Duration::from_secs(60);
const EXPIRY_MARGIN: Duration = Duration::from_secs(1);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_millis(seconds * 1_000)
}

fn deadline_policy() -> DeadlinePolicy {
    DeadlinePolicy {
        timeout: TIMEOUT,
        reachable_since: Some(at(0)),
        expiry_margin: EXPIRY_MARGIN,
        remove_after: Some(Duration::from_secs(600)),
    }
}

/// An agent that was last heard of at a hundred seconds.
fn agent(status: AgentStatus) -> StoredAgent {
    StoredAgent {
        agent_id: "a".to_owned(),
        agent_name: "Agent".to_owned(),
        base_url: "http://agent:8000".to_owned(),
        capabilities: Capabilities::new(&[Capability::new("work")]).unwrap(),
        metadata: Metadata::new(&serde_json::Map::new()).unwrap(),
        status,
        missed_deadline: false,
        offline_since: (status == AgentStatus::Offline).then(|| at(100)),
        probe_failed: false,
        heartbeat_interval: None,
        instance_id: Some("one".to_owned()),
        instances: Instances::default(),
        registered_at: at(50),
        last_heartbeat: at(100),
        revision: 7,
    }
}

/// What a change does to an agent at a moment, and what is written.
fn decide(change: &Change, current: StoredAgent, now: Timestamp) -> (Outcome, Writes) {
    decide_under(&deadline_policy(), change, current, now)
}

fn decide_under(
    policy: &DeadlinePolicy,
    change: &Change,
    current: StoredAgent,
    now: Timestamp,
) -> (Outcome, Writes) {
    let mut transition = Transition { policy, now, revision: 7, writes: Writes::default() };
    let outcome = transition.decide(change, Duration::ZERO, Some(current));
    (outcome, transition.writes)
}

fn beat() -> Change {
    Change::Heartbeat(Heartbeat::default())
}

fn register(given: Registration) -> Change {
    let instance_age = given.instance_age;
    Change::Register { draft: Box::new(StoredAgent::from_registration(given).unwrap()), instance_age }
}

fn kinds(writes: &Writes) -> Vec<(i64, EventKind)> {
    writes.events.iter().map(|event| (event.agent.revision, event.kind)).collect()
}

#[test]
fn a_deadline_is_missed_after_it_and_not_at_it() {
    let policy = deadline_policy();
    assert!(!policy.is_overdue(at(100), None, at(160)));
    assert!(policy.is_overdue(at(100), None, Timestamp::from_unix_millis(160_001)));
    // Twice the agent's own interval where that is longer; shorter ones change nothing.
    assert!(!policy.is_overdue(at(100), Some(Duration::from_secs(120)), at(340)));
    assert!(policy.is_overdue(at(100), Some(Duration::from_secs(120)), at(341)));
    assert!(!policy.is_overdue(at(100), Some(Duration::from_secs(1)), at(160)));
}

#[test]
fn silence_counts_from_when_agents_could_be_heard() {
    let back = DeadlinePolicy { reachable_since: Some(at(500)), ..deadline_policy() };
    assert!(!back.is_overdue(at(100), None, at(560)));
    assert!(back.is_overdue(at(100), None, at(561)));
    let away = DeadlinePolicy { reachable_since: None, ..deadline_policy() };
    assert!(!away.is_overdue(at(100), None, at(1_000_000)));
}

#[test]
fn who_is_past_the_deadline_by_the_margin_is_marked() {
    let (_, early) = decide(&Change::Expire, agent(AgentStatus::Busy), at(161));
    assert!(early.is_empty());
    let (outcome, writes) = decide(&Change::Expire, agent(AgentStatus::Busy), at(162));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let Outcome::Applied(marked) = outcome else { panic!("{outcome:?}") };
    assert_eq!((marked.status, marked.missed_deadline), (AgentStatus::Offline, true));
    assert_eq!((marked.offline_since, marked.revision), (Some(at(162)), 8));
    // Once is enough.
    let (_, again) = decide(&Change::Expire, marked.as_ref().clone(), at(1_000));
    assert!(again.is_empty());
}

#[test]
fn a_plain_heartbeat_writes_the_time_and_nothing_else() {
    let (_, writes) = decide(&beat(), agent(AgentStatus::Busy), at(130));
    assert_eq!(writes.heartbeats, [("a".to_owned(), at(130))]);
    assert!(writes.events.is_empty());
}

#[test]
fn a_heartbeat_that_comes_too_late_is_told_to_all() {
    let (_, writes) = decide(&beat(), agent(AgentStatus::Active), at(200));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let (outcome, writes) = decide(&beat(), agent(AgentStatus::Busy), at(200));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let Outcome::Applied(back) = outcome else { panic!("{outcome:?}") };
    assert_eq!((back.status, back.last_heartbeat), (AgentStatus::Active, at(200)));
}

#[test]
fn time_never_goes_back_and_the_future_ends_now() {
    let (_, writes) = decide(&beat(), agent(AgentStatus::Active), at(90));
    assert_eq!(writes.heartbeats, [("a".to_owned(), at(90))], "its clock was set back: now is 90");
    let mut transition =
        Transition { policy: &deadline_policy(), now: at(130), revision: 7, writes: Writes::default() };
    transition.decide(&beat(), Duration::from_secs(40), Some(agent(AgentStatus::Active)));
    assert_eq!(transition.writes.heartbeats, [("a".to_owned(), at(100))], "a later one is known");
}

#[test]
fn only_the_instance_that_registered_last_may_speak_for_the_agent() {
    for (instance, expected) in [(Some("one"), false), (None, false), (Some("other"), true)] {
        let instance_id = instance.map(str::to_owned);
        let mut heartbeat = Heartbeat::default();
        heartbeat.instance_id.clone_from(&instance_id);
        let mut update = StatusUpdate::new(AgentStatus::Offline);
        update.instance_id = instance_id;
        for change in [Change::Heartbeat(heartbeat), Change::SetStatus(update)] {
            let (outcome, writes) = decide(&change, agent(AgentStatus::Active), at(110));
            assert_eq!(matches!(outcome, Outcome::Superseded { .. }), expected, "{change:?}");
            assert_eq!(writes.is_empty(), expected, "{change:?}");
        }
    }
}

#[test]
fn who_stays_offline_is_removed_after_the_time_and_not_before() {
    let (_, early) = decide(&Change::Purge, agent(AgentStatus::Offline), at(700));
    assert!(early.is_empty());
    let (_, alive) = decide(&Change::Purge, agent(AgentStatus::Active), at(1_000_000));
    assert!(alive.is_empty());
    let (outcome, writes) = decide(&Change::Purge, agent(AgentStatus::Offline), at(701));
    assert!(matches!(outcome, Outcome::Removed));
    assert_eq!(kinds(&writes), [(8, EventKind::Deregistered)]);
    // Nobody is removed for what passed while the server was down.
    let back = DeadlinePolicy { reachable_since: Some(at(10_000)), ..deadline_policy() };
    let (_, writes) = decide_under(&back, &Change::Purge, agent(AgentStatus::Offline), at(10_600));
    assert!(writes.is_empty());
}

#[test]
fn a_probe_changes_an_agent_only_where_it_found_something_new() {
    let (_, same) = decide(&Change::Probed { failed: false }, agent(AgentStatus::Active), at(110));
    assert!(same.is_empty());
    let (outcome, writes) = decide(&Change::Probed { failed: true }, agent(AgentStatus::Busy), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let Outcome::Applied(failed) = outcome else { panic!("{outcome:?}") };
    assert_eq!((failed.status, failed.probe_failed), (AgentStatus::Busy, true));
    // The same process at the same address is no better for registering again; another may be.
    for (instance, address, expected) in
        [("one", "http://agent:8000", true), ("two", "http://agent:8000", false), ("one", "http://b", false)]
    {
        let again = Registration::new("a", "Agent", address).instance_id(instance);
        let (outcome, _) = decide(&register(again), failed.as_ref().clone(), at(120));
        let Outcome::Applied(registered) = outcome else { panic!("{outcome:?}") };
        assert_eq!(registered.probe_failed, expected, "{instance} at {address}");
    }
}

/// A registration of a process that started at a second, sent at another.
fn started(instance_id: &str, start: i64, sent: i64) -> Change {
    let age = Duration::from_secs(u64::try_from(sent - start).unwrap());
    register(Registration::new("a", "Agent", "http://b").instance_id(instance_id).instance_age(age))
}

fn shut_down(instance_id: &str) -> Change {
    Change::SetStatus(StatusUpdate::shut_down(instance_id))
}

fn beat_of(instance_id: &str) -> Change {
    Change::Heartbeat(Heartbeat::default().instance_id(instance_id))
}

/// The agent of instance "one", which started at ninety seconds and was last heard of at a hundred.
fn owned(status: AgentStatus) -> StoredAgent {
    let mut agent = agent(status);
    assert!(agent.instances.claim("one", Some(Duration::from_secs(10)), None, at(100)));
    agent
}

fn done((outcome, _): (Outcome, Writes)) -> StoredAgent {
    let Outcome::Applied(agent) = outcome else { panic!("{outcome:?}") };
    agent.as_ref().clone()
}

/// The owner that a refusal names, and whether the process was shut down.
fn refused(outcome: &Outcome) -> (Option<&str>, &str, bool) {
    let Outcome::Superseded { owner, has_ended } = outcome else { panic!("{outcome:?}") };
    (owner.instance_id.as_deref(), &owner.base_url, *has_ended)
}

#[test]
fn younger_process_takes_the_id_and_an_older_one_is_refused() {
    let younger = done(decide(&started("two", 95, 110), owned(AgentStatus::Busy), at(110)));
    assert_eq!((younger.instance_id.as_deref(), younger.base_url.as_str()), (Some("two"), "http://b"));
    let (outcome, _) = decide(&started("two", 85, 110), owned(AgentStatus::Busy), at(110));
    assert_eq!(refused(&outcome), (Some("one"), "http://agent:8000", false));
    let (tie, _) = decide(&started("two", 90, 110), owned(AgentStatus::Busy), at(110));
    assert_eq!(refused(&tie).0, Some("one"));
}

#[test]
fn refused_process_is_noted_once_and_nobody_sees_it() {
    let before = owned(AgentStatus::Busy);
    let (_, writes) = decide(&started("two", 85, 110), before.clone(), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let noted = writes.events[0].agent.as_ref().clone();
    assert!(noted.instances.is_running("two"));
    assert_eq!(StoredAgent { instances: before.instances.clone(), revision: 7, ..noted.clone() }, before);
    let (outcome, writes) = decide(&started("two", 85, 111), noted.clone(), at(111));
    assert!(refused(&outcome).0 == Some("one") && writes.is_empty());
    // Its start does not move, whatever it says later.
    let (outcome, _) = decide(&started("two", 112, 112), noted, at(112));
    assert_eq!(refused(&outcome).0, Some("one"));
}

#[test]
fn registration_without_an_age_or_an_instance_is_granted() {
    let no_age = register(Registration::new("a", "Agent", "http://b").instance_id("two"));
    assert_eq!(done(decide(&no_age, owned(AgentStatus::Busy), at(110))).instance_id.as_deref(), Some("two"));
    let no_instance = register(Registration::new("a", "Agent", "http://b"));
    let anonymous = done(decide(&no_instance, owned(AgentStatus::Busy), at(110)));
    assert_eq!(anonymous.instance_id, None);
    assert_eq!(anonymous.instances, owned(AgentStatus::Busy).instances);
}

#[test]
fn owner_gives_way_past_its_deadline_and_not_for_being_offline() {
    let older = |now| decide(&started("two", 50, now), owned(AgentStatus::Offline), at(now));
    assert_eq!(refused(&older(160).0).0, Some("one"));
    assert_eq!(done(older(161)).instance_id.as_deref(), Some("two"));
    // One that was marked stays dead after a restart of the server, from which silence counts anew.
    let back = DeadlinePolicy { reachable_since: Some(at(500)), ..deadline_policy() };
    let marked = StoredAgent { missed_deadline: true, ..owned(AgentStatus::Offline) };
    for (owner, is_granted) in [(owned(AgentStatus::Active), false), (marked, true)] {
        let (outcome, _) = decide_under(&back, &started("two", 50, 510), owner, at(510));
        assert_eq!(matches!(outcome, Outcome::Applied(_)), is_granted, "{outcome:?}");
    }
}

#[test]
fn owner_whose_start_is_not_known_gives_way() {
    let older = decide(&started("two", 50, 110), agent(AgentStatus::Active), at(110));
    assert_eq!(done(older).instance_id.as_deref(), Some("two"));
}

#[test]
fn instance_that_was_shut_down_may_not_speak_until_it_starts_again() {
    let (outcome, writes) = decide(&shut_down("one"), owned(AgentStatus::Busy), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let ended = done((outcome, writes));
    assert!(ended.status == AgentStatus::Offline && ended.instances.has_ended("one"));
    for late in [
        beat_of("one"),
        Change::SetStatus(StatusUpdate::new(AgentStatus::Busy).instance_id("one")),
        started("one", 90, 111),
    ] {
        let (outcome, writes) = decide(&late, ended.clone(), at(111));
        assert_eq!(refused(&outcome), (Some("one"), "http://agent:8000", true), "{late:?}");
        assert!(writes.is_empty(), "{late:?}");
    }
    let again = done(decide(&started("one", 111, 112), ended.clone(), at(112)));
    assert!(again.status == AgentStatus::Active && again.instances.is_running("one"));
    let no_age = register(Registration::new("a", "Agent", "http://b").instance_id("one"));
    assert!(done(decide(&no_age, ended.clone(), at(112))).instances.is_running("one"));
    // Nobody has to wait for its deadline.
    let older = done(decide(&started("two", 10, 112), ended, at(112)));
    assert_eq!(older.instance_id.as_deref(), Some("two"));
}

#[test]
fn end_of_an_agent_that_is_offline_already_is_recorded_and_nobody_sees_it() {
    let (outcome, writes) = decide(&shut_down("one"), owned(AgentStatus::Offline), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let ended = done((outcome, writes));
    assert!(ended.instances.has_ended("one"));
    let (outcome, writes) = decide(&shut_down("one"), ended, at(111));
    assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
    assert!(writes.is_empty());
}

#[test]
fn end_of_another_instance_is_refused_also_if_it_is_repeated() {
    let (outcome, writes) = decide(&shut_down("two"), owned(AgentStatus::Active), at(110));
    assert_eq!(refused(&outcome), (Some("one"), "http://agent:8000", false));
    assert!(writes.is_empty());
    // One that was never seen is not worth a place. One that was is noted, for its late requests.
    let two = done(decide(&started("two", 100, 110), owned(AgentStatus::Active), at(110)));
    let (outcome, writes) = decide(&shut_down("one"), two, at(111));
    assert_eq!(refused(&outcome), (Some("two"), "http://b", false));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let noted = writes.events[0].agent.as_ref().clone();
    assert!(noted.instances.has_ended("one") && noted.status == AgentStatus::Active);
    let (_, again) = decide(&shut_down("one"), noted, at(112));
    assert!(again.is_empty());
    let ended = done(decide(&shut_down("one"), owned(AgentStatus::Active), at(110)));
    let succeeded = done(decide(&started("two", 50, 111), ended, at(111)));
    let (outcome, _) = decide(&shut_down("one"), succeeded, at(112));
    assert_eq!(refused(&outcome), (Some("two"), "http://b", true));
}

#[test]
fn instance_that_was_shut_down_may_not_speak_for_an_agent_without_an_instance() {
    let mut anonymous = agent(AgentStatus::Active);
    anonymous.instance_id = None;
    let ended = done(decide(&shut_down("one"), anonymous, at(110)));
    assert_eq!(refused(&decide(&beat_of("one"), ended.clone(), at(111)).0).0, None);
    done(decide(&beat_of("two"), ended, at(111)));
}

#[test]
fn request_that_waited_is_judged_by_what_was_noted_meanwhile() {
    let transition = |change: &Change, waited: u64, current: StoredAgent| {
        let (policy, writes) = (deadline_policy(), Writes::default());
        let mut transition = Transition { policy: &policy, now: at(120), revision: 7, writes };
        transition.decide(change, Duration::from_secs(waited), Some(current))
    };
    // It arrived at 110; at 115 the process was shut down, through another server for example.
    let ended = done(decide(&shut_down("one"), owned(AgentStatus::Active), at(115)));
    assert!(refused(&transition(&started("one", 90, 110), 10, ended)).2);
    // And so for a younger process, whose start lies behind the arrival.
    let younger = done(decide(&started("two", 115, 116), owned(AgentStatus::Active), at(116)));
    assert_eq!(refused(&transition(&started("three", 100, 110), 10, younger)).0, Some("two"));
    // And where it was noted by a transaction whose clock was read later.
    let ended = done(decide(&shut_down("one"), owned(AgentStatus::Active), at(122)));
    assert!(refused(&transition(&started("one", 90, 110), 10, ended)).2);
    // What is further ahead than a minute is from before the clock was set back.
    let ended = done(decide(&shut_down("one"), owned(AgentStatus::Active), at(171)));
    assert!(matches!(transition(&started("one", 90, 110), 10, ended), Outcome::Applied(_)));
    // What waited is as old as it was: three is younger than one, who started at ninety.
    let Outcome::Applied(third) = transition(&started("three", 91, 110), 10, owned(AgentStatus::Active))
    else {
        panic!("it is younger")
    };
    assert_eq!(third.instance_id.as_deref(), Some("three"));
    assert!(matches!(
        transition(&started("three", 89, 110), 10, owned(AgentStatus::Active)),
        Outcome::Superseded { .. }
    ));
}
