//! The rules, one change at a time.

mod changed_by;
mod maintenance;

use registry_sdk::contract::{Capability, MaintenanceRequest, ProbeMode, Registration};
use registry_sdk::internal::Instances;

use super::*;
use crate::registry::time::Silence;
use crate::store::{Capabilities, Metadata};

const TIMEOUT: Duration = Duration::from_secs(60);
const EXPIRY_MARGIN: Duration = Duration::from_secs(1);

/// Name of the token behind every change.
const CALLER: &str = "caller";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_millis(seconds * 1_000)
}

fn deadline_policy() -> DeadlinePolicy {
    DeadlinePolicy {
        timeout: TIMEOUT,
        silence: Silence::without_outages(at(0)),
        expiry_margin: EXPIRY_MARGIN,
        remove_after: Some(Duration::from_secs(600)),
    }
}

/// An agent whose last heartbeat was at 100 s.
fn agent(status: AgentStatus) -> StoredAgent {
    StoredAgent {
        agent_id: "a".to_owned(),
        agent_name: "Agent".to_owned(),
        base_url: "http://agent:8000".to_owned(),
        health_path: None,
        probe: None,
        capabilities: Capabilities::new(&[Capability::new("work")]).unwrap(),
        metadata: Metadata::new(&serde_json::Map::new()).unwrap(),
        status,
        missed_deadline: false,
        offline_since: (status == AgentStatus::Offline).then(|| at(100)),
        probe_failed: false,
        heartbeat_interval: None,
        instance_id: Some("one".to_owned()),
        instances: Instances::default(),
        maintenance: None,
        changed_by: None,
        card_digest: None,
        registered_at: at(50),
        last_heartbeat: at(100),
        revision: 7,
    }
}

/// The state of an agent whose row is as the registry wrote it.
fn as_known(agent: StoredAgent) -> CurrentAgent {
    CurrentAgent { known: Some(Arc::new(agent.clone())), row: Some(agent), is_unreadable: false }
}

fn heard(writes: &Writes) -> Vec<(&str, Timestamp)> {
    writes.heartbeats.iter().map(|agent| (agent.agent_id.as_str(), agent.last_heartbeat)).collect()
}

/// Decides a change at a given time, and returns the outcome and the writes.
fn decide(change: &Change, current: StoredAgent, now: Timestamp) -> (Outcome, Writes) {
    decide_under(&deadline_policy(), change, current, now)
}

fn decide_under(
    policy: &DeadlinePolicy,
    change: &Change,
    current: StoredAgent,
    now: Timestamp,
) -> (Outcome, Writes) {
    let mut transition = Transition::new(policy, now, 7);
    let outcome = transition.decide(change, Some(CALLER), Duration::ZERO, as_known(current));
    (outcome, transition.writes)
}

fn heartbeat() -> Change {
    Change::Heartbeat(Heartbeat::default())
}

fn register(registration: Registration) -> Change {
    let instance_age = registration.instance_age;
    let card = registration.card.clone();
    let draft = Box::new(StoredAgent::from_registration(registration).unwrap());
    Change::Register { draft, instance_age, card }
}

fn kinds(writes: &Writes) -> Vec<(i64, EventKind)> {
    writes.events.iter().map(|event| (event.agent.revision, event.kind)).collect()
}

#[test]
fn deadline_is_missed_after_the_timeout_but_not_at_it() {
    let policy = deadline_policy();
    assert!(!policy.is_overdue(at(100), None, at(160)));
    assert!(policy.is_overdue(at(100), None, Timestamp::from_unix_millis(160_001)));
    // Twice the agent's own interval, if that is longer. Shorter intervals have no effect.
    assert!(!policy.is_overdue(at(100), Some(Duration::from_secs(120)), at(340)));
    assert!(policy.is_overdue(at(100), Some(Duration::from_secs(120)), at(341)));
    assert!(!policy.is_overdue(at(100), Some(Duration::from_secs(1)), at(160)));
}

#[test]
fn silence_only_counts_while_the_registry_is_reachable() {
    let back = DeadlinePolicy { silence: Silence::without_outages(at(500)), ..deadline_policy() };
    assert!(!back.is_overdue(at(100), None, at(560)));
    assert!(back.is_overdue(at(100), None, at(561)));
    let away = DeadlinePolicy { silence: Silence::starting_at(at(500)), ..deadline_policy() };
    assert!(!away.is_overdue(at(100), None, at(1_000_000)));
}

#[test]
fn first_heartbeat_after_the_clock_was_set_back_needs_an_event() {
    let policy = deadline_policy();
    assert!(!policy.is_nearly_overdue(at(100), None, at(95)), "readings may differ by that much");
    assert!(policy.is_nearly_overdue(at(100), None, at(50)));
}

#[test]
fn agent_past_the_deadline_by_the_margin_is_marked_offline() {
    let (outcome, early) = decide(&Change::Expire, agent(AgentStatus::Busy), at(161));
    assert!(matches!(outcome, Outcome::Unchanged(_)) && early.is_empty());
    let (outcome, writes) = decide(&Change::Expire, agent(AgentStatus::Busy), at(162));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let Outcome::Applied(marked) = outcome else { panic!("{outcome:?}") };
    assert_eq!((marked.status, marked.missed_deadline), (AgentStatus::Offline, true));
    assert_eq!((marked.offline_since, marked.revision), (Some(at(162)), 8));
    // An agent is marked only once.
    let (_, again) = decide(&Change::Expire, marked.as_ref().clone(), at(1_000));
    assert!(again.is_empty());
}

#[test]
fn plain_heartbeat_writes_only_the_time() {
    let (_, writes) = decide(&heartbeat(), agent(AgentStatus::Busy), at(130));
    assert_eq!(heard(&writes), [("a", at(130))]);
    assert!(writes.events.is_empty());
}

#[test]
fn late_heartbeat_emits_an_event() {
    let (_, writes) = decide(&heartbeat(), agent(AgentStatus::Active), at(200));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let (outcome, writes) = decide(&heartbeat(), agent(AgentStatus::Busy), at(200));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let Outcome::Applied(back) = outcome else { panic!("{outcome:?}") };
    assert_eq!((back.status, back.last_heartbeat), (AgentStatus::Active, at(200)));
}

#[test]
fn last_heartbeat_moves_back_only_from_the_future() {
    let (_, writes) = decide(&heartbeat(), agent(AgentStatus::Active), at(90));
    assert_eq!(heard(&writes), [("a", at(90))], "the clock was set back to 90");
    let policy = deadline_policy();
    let mut transition = Transition::new(&policy, at(130), 7);
    transition.decide(
        &heartbeat(),
        Some(CALLER),
        Duration::from_secs(40),
        as_known(agent(AgentStatus::Active)),
    );
    assert_eq!(heard(&transition.writes), [("a", at(100))], "a later heartbeat is known");
}

#[test]
fn only_the_registered_instance_may_act_for_the_agent() {
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
fn offline_agent_is_purged_after_remove_after() {
    let (_, early) = decide(&Change::Purge, agent(AgentStatus::Offline), at(700));
    assert!(early.is_empty());
    let (_, alive) = decide(&Change::Purge, agent(AgentStatus::Active), at(1_000_000));
    assert!(alive.is_empty());
    let (outcome, writes) = decide(&Change::Purge, agent(AgentStatus::Offline), at(701));
    assert!(matches!(outcome, Outcome::Removed(_)));
    assert_eq!(kinds(&writes), [(8, EventKind::Deregistered)]);
    let mut taken_out = agent(AgentStatus::Offline);
    taken_out.maintenance = Some(MaintenanceRequest::new("repair").begin(at(100)));
    let (_, writes) = decide(&Change::Purge, taken_out, at(1_000_000));
    assert!(writes.is_empty());
    // After a server start, the agent has one timeout to come back, however long it was offline before.
    let back = DeadlinePolicy { silence: Silence::without_outages(at(10_000)), ..deadline_policy() };
    let (_, writes) = decide_under(&back, &Change::Purge, agent(AgentStatus::Offline), at(10_060));
    assert!(writes.is_empty());
    let (outcome, _) = decide_under(&back, &Change::Purge, agent(AgentStatus::Offline), at(10_061));
    assert!(matches!(outcome, Outcome::Removed(_)));
}

#[test]
fn probe_only_changes_an_agent_if_the_result_differs() {
    let (_, same) = decide(&Change::Probed { failed: false }, agent(AgentStatus::Active), at(110));
    assert!(same.is_empty());
    let (outcome, writes) = decide(&Change::Probed { failed: true }, agent(AgentStatus::Busy), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let Outcome::Applied(failed) = outcome else { panic!("{outcome:?}") };
    assert_eq!((failed.status, failed.probe_failed), (AgentStatus::Busy, true));
    // The failure persists if the same process registers again at the same address, and is cleared otherwise.
    for (instance, address, expected) in
        [("one", "http://agent:8000", true), ("two", "http://agent:8000", false), ("one", "http://b", false)]
    {
        let again = Registration::new("a", "Agent", address).instance_id(instance);
        let (outcome, _) = decide(&register(again), failed.as_ref().clone(), at(120));
        let Outcome::Applied(registered) = outcome else { panic!("{outcome:?}") };
        assert_eq!(registered.probe_failed, expected, "{instance} at {address}");
    }
}

/// A registration sent at `sent` by a process that started at `start`.
fn started(instance_id: &str, start: i64, sent: i64) -> Change {
    let age = Duration::from_secs(u64::try_from(sent - start).unwrap());
    register(Registration::new("a", "Agent", "http://b").instance_id(instance_id).instance_age(age))
}

#[test]
fn probe_failure_persists_for_the_same_process_at_the_same_url() {
    let failed = StoredAgent { probe_failed: true, ..agent(AgentStatus::Active) };
    let again = || Registration::new("a", "Agent", "http://agent:8000").instance_id("one");
    for (registration, still_fails) in [
        (again(), true),
        (again().probe(ProbeMode::On), true),
        (again().no_probe(), false),
        (again().health_path("/healthz"), false),
        (again().instance_id("two"), false),
        (Registration::new("a", "Agent", "http://b").instance_id("one"), false),
    ] {
        let after = applied(decide(&register(registration.clone()), failed.clone(), at(101)));
        assert_eq!(after.probe_failed, still_fails, "{registration:?}");
    }
    // A probe may have been running when the agent registered.
    let not_asked = StoredAgent { probe: Some(ProbeMode::Off), ..agent(AgentStatus::Active) };
    assert!(!applied(decide(&Change::Probed { failed: true }, not_asked, at(101))).probe_failed);
}

fn shut_down(instance_id: &str) -> Change {
    Change::SetStatus(StatusUpdate::shut_down(instance_id))
}

fn heartbeat_of(instance_id: &str) -> Change {
    Change::Heartbeat(Heartbeat::default().instance_id(instance_id))
}

/// An agent owned by instance "one", which started at 90 s and sent its last heartbeat at 100 s.
fn owned(status: AgentStatus) -> StoredAgent {
    let mut agent = agent(status);
    assert!(agent.instances.claim("one", Some(Duration::from_secs(10)), None, at(100)));
    agent
}

fn applied((outcome, _): (Outcome, Writes)) -> StoredAgent {
    outcome.agent().unwrap_or_else(|| panic!("{outcome:?}")).as_ref().clone()
}

/// Returns the owner named in a rejection, and whether the rejected process was shut down.
fn rejected(outcome: &Outcome) -> (Option<&str>, &str, bool) {
    let Outcome::Superseded { owner, has_ended } = outcome else { panic!("{outcome:?}") };
    (owner.instance_id.as_deref(), &owner.base_url, *has_ended)
}

#[test]
fn younger_process_takes_the_id_and_an_older_one_is_rejected() {
    let younger = applied(decide(&started("two", 95, 110), owned(AgentStatus::Busy), at(110)));
    assert_eq!((younger.instance_id.as_deref(), younger.base_url.as_str()), (Some("two"), "http://b"));
    let (outcome, _) = decide(&started("two", 85, 110), owned(AgentStatus::Busy), at(110));
    assert_eq!(rejected(&outcome), (Some("one"), "http://agent:8000", false));
    let (tie, _) = decide(&started("two", 90, 110), owned(AgentStatus::Busy), at(110));
    assert_eq!(rejected(&tie).0, Some("one"));
}

#[test]
fn rejected_process_is_recorded_once_by_an_internal_event() {
    let before = owned(AgentStatus::Busy);
    let (_, writes) = decide(&started("two", 85, 110), before.clone(), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let recorded = writes.events[0].agent.as_ref().clone();
    assert!(recorded.instances.is_running("two"));
    assert_eq!(StoredAgent { instances: before.instances.clone(), revision: 7, ..recorded.clone() }, before);
    let (outcome, writes) = decide(&started("two", 85, 111), recorded.clone(), at(111));
    assert!(rejected(&outcome).0 == Some("one") && writes.is_empty());
    // A recorded start does not change.
    let (outcome, _) = decide(&started("two", 112, 112), recorded, at(112));
    assert_eq!(rejected(&outcome).0, Some("one"));
}

#[test]
fn registration_without_an_age_or_an_instance_is_granted() {
    let no_age = register(Registration::new("a", "Agent", "http://b").instance_id("two"));
    assert_eq!(
        applied(decide(&no_age, owned(AgentStatus::Busy), at(110))).instance_id.as_deref(),
        Some("two")
    );
    let no_instance = register(Registration::new("a", "Agent", "http://b"));
    let anonymous = applied(decide(&no_instance, owned(AgentStatus::Busy), at(110)));
    assert_eq!(anonymous.instance_id, None);
    assert_eq!(anonymous.instances, owned(AgentStatus::Busy).instances);
}

#[test]
fn owner_loses_the_id_past_its_deadline_but_not_by_being_offline() {
    let older = |now| decide(&started("two", 50, now), owned(AgentStatus::Offline), at(now));
    assert_eq!(rejected(&older(160).0).0, Some("one"));
    assert_eq!(applied(older(161)).instance_id.as_deref(), Some("two"));
    // The mark survives a restart of the server, after which silence is counted anew.
    let back = DeadlinePolicy { silence: Silence::without_outages(at(500)), ..deadline_policy() };
    let marked = StoredAgent { missed_deadline: true, ..owned(AgentStatus::Offline) };
    for (owner, is_granted) in [(owned(AgentStatus::Active), false), (marked, true)] {
        let (outcome, _) = decide_under(&back, &started("two", 50, 510), owner, at(510));
        assert_eq!(matches!(outcome, Outcome::Applied(_)), is_granted, "{outcome:?}");
    }
}

#[test]
fn owner_with_unknown_start_loses_the_id() {
    let older = decide(&started("two", 50, 110), agent(AgentStatus::Active), at(110));
    assert_eq!(applied(older).instance_id.as_deref(), Some("two"));
}

#[test]
fn ended_instance_is_rejected_until_it_starts_again() {
    let (outcome, writes) = decide(&shut_down("one"), owned(AgentStatus::Busy), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let ended = applied((outcome, writes));
    assert!(ended.status == AgentStatus::Offline && ended.instances.has_ended("one"));
    for late in [
        heartbeat_of("one"),
        Change::SetStatus(StatusUpdate::new(AgentStatus::Busy).instance_id("one")),
        started("one", 90, 111),
    ] {
        let (outcome, writes) = decide(&late, ended.clone(), at(111));
        assert_eq!(rejected(&outcome), (Some("one"), "http://agent:8000", true), "{late:?}");
        assert!(writes.is_empty(), "{late:?}");
    }
    let again = applied(decide(&started("one", 111, 112), ended.clone(), at(112)));
    assert!(again.status == AgentStatus::Active && again.instances.is_running("one"));
    let no_age = register(Registration::new("a", "Agent", "http://b").instance_id("one"));
    assert!(applied(decide(&no_age, ended.clone(), at(112))).instances.is_running("one"));
    // An ended owner loses the id before its deadline.
    let older = applied(decide(&started("two", 10, 112), ended, at(112)));
    assert_eq!(older.instance_id.as_deref(), Some("two"));
}

#[test]
fn shutdown_of_an_offline_agent_is_recorded_by_an_internal_event() {
    let (outcome, writes) = decide(&shut_down("one"), owned(AgentStatus::Offline), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let ended = applied((outcome, writes));
    assert!(ended.instances.has_ended("one"));
    let (outcome, writes) = decide(&shut_down("one"), ended, at(111));
    assert!(matches!(outcome, Outcome::Unchanged(_)), "{outcome:?}");
    assert!(writes.is_empty());
}

#[test]
fn shutdown_of_another_instance_is_rejected_even_if_repeated() {
    let (outcome, writes) = decide(&shut_down("two"), owned(AgentStatus::Active), at(110));
    assert_eq!(rejected(&outcome), (Some("one"), "http://agent:8000", false));
    assert!(writes.is_empty());
    // The shutdown of an unknown instance is not recorded. That of a known one is, so that its late requests
    // are rejected.
    let two = applied(decide(&started("two", 100, 110), owned(AgentStatus::Active), at(110)));
    let (outcome, writes) = decide(&shut_down("one"), two, at(111));
    assert_eq!(rejected(&outcome), (Some("two"), "http://b", false));
    assert_eq!(kinds(&writes), [(8, EventKind::Internal)]);
    let recorded = writes.events[0].agent.as_ref().clone();
    assert!(recorded.instances.has_ended("one") && recorded.status == AgentStatus::Active);
    let (_, again) = decide(&shut_down("one"), recorded, at(112));
    assert!(again.is_empty());
    let ended = applied(decide(&shut_down("one"), owned(AgentStatus::Active), at(110)));
    let succeeded = applied(decide(&started("two", 50, 111), ended, at(111)));
    let (outcome, _) = decide(&shut_down("one"), succeeded, at(112));
    assert_eq!(rejected(&outcome), (Some("two"), "http://b", true));
}

#[test]
fn ended_instance_is_rejected_for_an_agent_without_an_instance() {
    let mut anonymous = agent(AgentStatus::Active);
    anonymous.instance_id = None;
    let ended = applied(decide(&shut_down("one"), anonymous, at(110)));
    assert_eq!(rejected(&decide(&heartbeat_of("one"), ended.clone(), at(111)).0).0, None);
    applied(decide(&heartbeat_of("two"), ended, at(111)));
}

#[test]
fn delayed_request_respects_changes_recorded_meanwhile() {
    let decide_late = |change: &Change, waited: u64, current: StoredAgent| {
        let policy = deadline_policy();
        let mut transition = Transition::new(&policy, at(120), 7);
        transition.decide(change, Some(CALLER), Duration::from_secs(waited), as_known(current))
    };
    // The request arrived at 110. The process was shut down at 115, for example through another server.
    let ended = applied(decide(&shut_down("one"), owned(AgentStatus::Active), at(115)));
    assert!(rejected(&decide_late(&started("one", 90, 110), 10, ended)).2);
    // The same for a younger process that started after the request arrived.
    let younger = applied(decide(&started("two", 115, 116), owned(AgentStatus::Active), at(116)));
    assert_eq!(rejected(&decide_late(&started("three", 100, 110), 10, younger)).0, Some("two"));
    // The same if the shutdown was recorded by a transaction with a later clock.
    let ended = applied(decide(&shut_down("one"), owned(AgentStatus::Active), at(122)));
    assert!(rejected(&decide_late(&started("one", 90, 110), 10, ended)).2);
    // A time more than a minute ahead was recorded before the clock was set back.
    let ended = applied(decide(&shut_down("one"), owned(AgentStatus::Active), at(171)));
    assert!(matches!(decide_late(&started("one", 90, 110), 10, ended), Outcome::Applied(_)));
    // Waiting does not change an age: "three" is younger than "one", which started at 90.
    let Outcome::Applied(third) = decide_late(&started("three", 91, 110), 10, owned(AgentStatus::Active))
    else {
        panic!("it is younger")
    };
    assert_eq!(third.instance_id.as_deref(), Some("three"));
    assert!(matches!(
        decide_late(&started("three", 89, 110), 10, owned(AgentStatus::Active)),
        Outcome::Superseded { .. }
    ));
}

/// Decides a change after another program wrote the row.
fn decide_edited(change: &Change, row: Option<StoredAgent>, known: Option<StoredAgent>) -> (Outcome, Writes) {
    let policy = deadline_policy();
    let mut transition = Transition::new(&policy, at(110), 7);
    let current = CurrentAgent { row, is_unreadable: false, known: known.map(Arc::new) };
    let outcome = transition.decide(change, Some(CALLER), Duration::ZERO, current);
    (outcome, transition.writes)
}

#[test]
fn row_written_by_another_program_becomes_a_change() {
    let known = agent(AgentStatus::Active);
    let busy = StoredAgent { status: AgentStatus::Busy, ..known.clone() };
    let moved = StoredAgent { base_url: "http://elsewhere".to_owned(), ..known.clone() };
    let renumbered = StoredAgent { revision: 0, ..known.clone() };
    for (row, kind) in
        [(busy, EventKind::StatusChanged), (moved, EventKind::Registered), (renumbered, EventKind::Internal)]
    {
        for change in [Change::Reconcile, heartbeat(), Change::Expire, Change::Purge] {
            let (outcome, writes) = decide_edited(&change, Some(row.clone()), Some(known.clone()));
            assert!(matches!(outcome, Outcome::Adopted(_)), "{change:?}: {outcome:?}");
            assert_eq!(kinds(&writes), [(8, kind)], "{change:?}");
        }
    }
    let (_, inserted) = decide_edited(&Change::Reconcile, Some(known.clone()), None);
    assert_eq!(kinds(&inserted), [(8, EventKind::Registered)]);
    let heard = StoredAgent { last_heartbeat: at(109), ..known.clone() };
    let (_, unchanged) = decide_edited(&Change::Reconcile, Some(heard), Some(known));
    assert!(unchanged.is_empty(), "heartbeats are no difference");
}

#[test]
fn row_deleted_by_another_program_becomes_a_removal() {
    for change in [Change::Reconcile, heartbeat(), Change::Expire] {
        let (outcome, writes) = decide_edited(&change, None, Some(agent(AgentStatus::Active)));
        assert!(matches!(outcome, Outcome::FoundDeleted(_)), "{change:?}");
        assert_eq!(kinds(&writes), [(8, EventKind::Deregistered)], "{change:?}");
    }
    let (outcome, _) = decide_edited(&Change::Remove, None, Some(agent(AgentStatus::Active)));
    assert!(matches!(outcome, Outcome::Removed(_)));
    let (outcome, writes) = decide_edited(&Change::Remove, None, None);
    assert!(matches!(outcome, Outcome::NotFound) && writes.is_empty());
}

#[test]
fn unreadable_row_is_kept_unless_the_agent_registers_or_is_removed() {
    let policy = deadline_policy();
    let decide = |change: &Change| {
        let mut transition = Transition::new(&policy, at(110), 7);
        let known = Some(Arc::new(agent(AgentStatus::Active)));
        let outcome = transition.decide(
            change,
            Some(CALLER),
            Duration::ZERO,
            CurrentAgent { row: None, is_unreadable: true, known },
        );
        (outcome, kinds(&transition.writes))
    };
    assert!(matches!(decide(&heartbeat()), (Outcome::NotFound, writes) if writes.is_empty()));
    assert_eq!(decide(&Change::Remove).1, [(8, EventKind::Deregistered)]);
    assert_eq!(decide(&register(Registration::new("a", "A", "http://a"))).1, [(8, EventKind::Registered)]);
}
