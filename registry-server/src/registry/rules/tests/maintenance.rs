//! Maintenance: changes that begin it, end it or keep it.

use super::*;

fn maintenance_of(agent: &StoredAgent, now: i64) -> Option<&str> {
    let maintenance = agent.maintenance.as_ref().filter(|_| agent.is_in_maintenance(at(now)));
    maintenance.map(|maintenance| &*maintenance.reason)
}

/// An agent of instance "one" that was put into maintenance at 110 s, for a minute.
fn taken_out(request: MaintenanceRequest) -> StoredAgent {
    let change = Change::SetMaintenance(request.duration(TIMEOUT));
    applied(decide(&change, owned(AgentStatus::Active), at(110)))
}

#[test]
fn maintenance_begins_and_ends_with_an_event() {
    let upgrade = MaintenanceRequest::new("upgrade");
    let (outcome, writes) = decide(&Change::SetMaintenance(upgrade), owned(AgentStatus::Busy), at(110));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let taken_out = applied((outcome, writes));
    assert_eq!((taken_out.status, maintenance_of(&taken_out, 110)), (AgentStatus::Busy, Some("upgrade")));
    assert_eq!(maintenance_of(&taken_out, 1_000_000_000), Some("upgrade"));
    let (outcome, writes) = decide(&Change::EndMaintenance, taken_out, at(120));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let (outcome, writes) = decide(&Change::EndMaintenance, applied((outcome, writes)), at(130));
    assert!(writes.is_empty(), "there is no maintenance");
    assert_eq!(applied((outcome, writes)).maintenance, None);
}

#[test]
fn maintenance_is_over_at_its_end_and_does_not_expire_earlier() {
    let agent = taken_out(MaintenanceRequest::new("upgrade"));
    assert_eq!((maintenance_of(&agent, 169), maintenance_of(&agent, 170)), (Some("upgrade"), None));
    let (_, early) = decide(&Change::ExpireMaintenance, agent.clone(), at(169));
    assert!(early.is_empty());
    let (outcome, writes) = decide(&Change::ExpireMaintenance, agent, at(170));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let ended = applied((outcome, writes));
    assert_eq!(ended.maintenance, None);
    let (_, again) = decide(&Change::ExpireMaintenance, ended, at(171));
    assert!(again.is_empty());
}

#[test]
fn outage_does_not_extend_maintenance() {
    let agent = taken_out(MaintenanceRequest::new("upgrade"));
    // The database has been unavailable since 110 s.
    let away = DeadlinePolicy { silence: Silence::starting_at(at(110)), ..deadline_policy() };
    let (_, writes) = decide_under(&away, &Change::ExpireMaintenance, agent, at(170));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
}

#[test]
fn other_changes_keep_maintenance() {
    let agent = taken_out(MaintenanceRequest::new("upgrade"));
    for change in [
        heartbeat_of("one"),
        Change::Heartbeat(Heartbeat::default().status(AgentStatus::Busy)),
        Change::SetStatus(StatusUpdate::new(AgentStatus::Offline)),
        shut_down("one"),
        Change::Probed { failed: true },
        Change::Expire,
        Change::Reconcile,
        started("one", 90, 120),
        started("two", 115, 120),
        register(Registration::new("a", "Agent", "http://b")),
    ] {
        let (outcome, _) = decide(&change, agent.clone(), at(120));
        assert_eq!(applied((outcome, Writes::default())).maintenance, agent.maintenance, "{change:?}");
    }
    let late = applied(decide(&Change::Expire, agent.clone(), at(169)));
    assert_eq!((late.status, maintenance_of(&late, 169)), (AgentStatus::Offline, Some("upgrade")));
}

#[test]
fn maintenance_of_a_process_ends_with_the_process() {
    let agent = taken_out(MaintenanceRequest::new("draining").instance_id("one"));
    assert_eq!(maintenance_of(&agent, 120), Some("draining"));
    let stays = [heartbeat_of("one"), started("one", 90, 120), started("one", 109, 120)];
    for change in stays {
        let after = applied(decide(&change, agent.clone(), at(120)));
        assert_eq!(maintenance_of(&after, 120), Some("draining"), "{change:?}");
    }
    let ends = [
        shut_down("one"),
        started("two", 115, 120),
        // A later process with the same instance id.
        started("one", 111, 120),
        register(Registration::new("a", "Agent", "http://b")),
    ];
    for change in ends {
        let (outcome, writes) = decide(&change, agent.clone(), at(120));
        assert_eq!(writes.events.len(), 1, "{change:?}");
        assert_eq!(applied((outcome, writes)).maintenance, None, "{change:?}");
    }
    // A server of an earlier version lets another process register and keeps the maintenance in the row.
    let row = StoredAgent { instance_id: Some("two".to_owned()), ..agent };
    assert_eq!(maintenance_of(&row, 120), None);
    let (outcome, writes) = decide(&Change::ExpireMaintenance, row, at(120));
    assert_eq!(applied((outcome, writes)).maintenance, None);
}

#[test]
fn shutdown_ends_the_maintenance_of_the_process_visibly_even_if_the_agent_was_offline() {
    let offline = StoredAgent {
        status: AgentStatus::Offline,
        offline_since: Some(at(115)),
        ..taken_out(MaintenanceRequest::new("draining").instance_id("one"))
    };
    let (outcome, writes) = decide(&shut_down("one"), offline, at(120));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let ended = applied((outcome, writes));
    assert_eq!((ended.maintenance, ended.offline_since), (None, Some(at(115))));
}

#[test]
fn only_the_owner_can_put_its_process_into_maintenance() {
    let draining = |instance_id: &str| {
        Change::SetMaintenance(MaintenanceRequest::new("draining").instance_id(instance_id))
    };
    let (outcome, writes) = decide(&draining("two"), owned(AgentStatus::Active), at(110));
    assert_eq!(rejected(&outcome), (Some("one"), "http://agent:8000", false));
    assert!(writes.is_empty());
    let ended = applied(decide(&shut_down("one"), owned(AgentStatus::Active), at(110)));
    assert!(rejected(&decide(&draining("one"), ended, at(111)).0).2);
    let anonymous = StoredAgent { instance_id: None, ..owned(AgentStatus::Active) };
    assert_eq!(rejected(&decide(&draining("one"), anonymous, at(111)).0).0, None);
    // The agent is already in maintenance, which outlasts the process.
    let agent = taken_out(MaintenanceRequest::new("upgrade"));
    let (outcome, writes) = decide(&draining("one"), agent, at(120));
    assert!(writes.is_empty());
    let agent = applied((outcome, writes));
    assert_eq!(maintenance_of(&agent, 120), Some("upgrade"));
    let over = applied(decide(&draining("one"), agent, at(170)));
    assert_eq!(maintenance_of(&over, 170), Some("draining"));
}

#[test]
fn maintenance_written_by_another_program_becomes_a_change() {
    let known = owned(AgentStatus::Active);
    let row = taken_out(MaintenanceRequest::new("upgrade"));
    let row = StoredAgent { revision: known.revision, ..row };
    let (_, writes) = decide_edited(&Change::Reconcile, Some(row.clone()), Some(known.clone()));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
    let (_, writes) = decide_edited(&Change::Reconcile, Some(known), Some(row));
    assert_eq!(kinds(&writes), [(8, EventKind::StatusChanged)]);
}
