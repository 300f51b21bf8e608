//! Compares what clients observed with the histories of the hosts.

use crate::store::{Event, EventKind, Position};

use super::clients::{Call, TOYS, Wish};
use super::faults::Fault;
use super::host::{Host, Past};
use super::server::Failure;
use super::watchers::{Stream, Told};
use super::world::World;

/// Checks that each change of a toy agent is in the history exactly if the response to its caller says so.
pub(super) fn check_calls(world: &World) {
    let calls = world.records.lock().calls.clone();
    let state = world.sim.lock();
    let mut problems = Vec::new();
    let is_settled =
        !state.forgets_soon() && world.profile.faults.iter().all(|fault| fault.lets_servers_settle());
    for agent_id in TOYS {
        let calls: Vec<&Call> = calls.iter().filter(|call| call.agent_id == agent_id).collect();
        let mut is_found = vec![false; calls.len()];
        for host in &state.hosts {
            let matched = match_calls(host, state.primary(), agent_id, &calls, &mut problems);
            is_found.iter_mut().zip(matched).for_each(|(found, matched)| *found |= matched);
        }
        for (call, is_found) in calls.iter().zip(is_found) {
            // Setting the status that an agent already has leaves no event.
            if call.result == Err(Failure::Unknown) && is_settled {
                problems.push(format!("nothing kept the server from finding out: {call:?}"));
            }
            if call.result.is_ok() && !is_found && !matches!(call.wish, Wish::SetStatus(_)) {
                problems.push(format!("was answered 200 and is in no history: {call:?}"));
            }
        }
    }
    drop(state);
    for problem in problems {
        world.violation(problem);
    }
}

/// Finds the call behind each event of an agent in a host's history. Returns which calls were found.
///
/// Changes that are missing from the last primary's history count as not made.
fn match_calls(
    host: &Host,
    primary: &Host,
    agent_id: &str,
    calls: &[&Call],
    problems: &mut Vec<String>,
) -> Vec<bool> {
    let mut is_matched = vec![false; calls.len()];
    let is_of_agent = |past: &&Past| past.event.agent.agent_id == agent_id;
    for Past { event, committed_at } in host.history.iter().filter(is_of_agent) {
        let is_lost = primary.find(event.position()).is_none();
        let begun = calls.partition_point(|call| call.begun <= *committed_at);
        let candidates = calls.iter().enumerate().take(begun).rev();
        let found = candidates.enumerate().find(|(steps_back, (index, call))| {
            let is_possible = match call.result {
                // The last call is the current one. Earlier calls had ended, if their callers got a response.
                Ok(()) => is_lost || *steps_back == 0 && *committed_at <= call.ended,
                Err(Failure::Unknown | Failure::Disconnected) => true,
                Err(Failure::Unchanged | Failure::NotFound | Failure::Other) => is_lost,
            };
            is_possible && !is_matched[*index] && is_wished(event, &call.wish)
        });
        if let Some((_, (index, _))) = found {
            is_matched[index] = true;
        } else {
            let last = begun.checked_sub(1).and_then(|last| calls.get(last));
            let (position, kind) = (event.position(), event.kind);
            problems.push(format!("{position:?} {kind:?} {agent_id} was not to be applied: {last:?}"));
        }
    }
    is_matched
}

fn is_wished(event: &Event, wish: &Wish) -> bool {
    match wish {
        Wish::Register(name) => event.kind == EventKind::Registered && event.agent.agent_name == *name,
        Wish::SetStatus(status) => event.kind == EventKind::StatusChanged && event.agent.status == *status,
        Wish::Remove => event.kind == EventKind::Deregistered,
    }
}

/// Checks that each stream contains every change of one history exactly once and in order, or a reset.
pub(super) fn check_streams(world: &World) {
    let streams = world.records.lock().streams.clone();
    let state = world.sim.lock();
    let mut problems = Vec::new();
    for (number, stream) in streams.iter().enumerate() {
        if let Err(problem) = follow(stream, &state.hosts, state.primary) {
            problems.push(format!("watcher {number}: {problem}"));
        }
    }
    let may_reset = [Fault::Failover, Fault::Restore, Fault::TruncateLog];
    let has_upheaval = world.profile.faults.iter().any(|fault| may_reset.contains(fault));
    if !has_upheaval && !state.forgets_soon() && streams.iter().any(has_needless_reset) {
        problems.push("a stream was reset although the history is still the same and kept".to_owned());
    }
    drop(state);
    for problem in problems {
        world.violation(problem);
    }
}

/// Whether a stream was reset by a server that knew as much as the watcher.
fn has_needless_reset(stream: &Stream) -> bool {
    stream.told.windows(2).any(|told| {
        let [before, Told::Reset { id }] = told else { return false };
        id.revision >= before.id().revision
    })
}

/// Positions in the histories of hosts: the host, and the number of changes before the position.
type Places = Vec<(usize, usize)>;

fn follow(stream: &Stream, hosts: &[Host], primary: usize) -> Result<(), String> {
    let mut places: Option<Places> = None;
    let mut last_id = None;
    for told in &stream.told {
        match told {
            Told::Begun { id, last_event_id } => {
                if last_event_id.as_ref().is_some_and(|last| last != id) {
                    return Err(format!("was resumed after {last_event_id:?}, and begins after {id}"));
                }
                if last_event_id.is_none() {
                    places = Some(find(*id, hosts));
                }
            }
            Told::Reset { id } => places = Some(find(*id, hosts)),
            Told::Event { id, kind, record } => {
                let before = places.take().unwrap_or_default();
                let after: Places = before
                    .iter()
                    .filter_map(|place| {
                        let (index, past) = next_visible(*place, hosts)?;
                        let agent = &past.event.agent;
                        let is_same = past.event.position() == *id
                            && past.event.kind.as_str() == kind
                            && agent.agent_id == record.agent_id
                            && agent.agent_name == record.agent_name
                            && record.revision == u64::try_from(agent.revision).ok();
                        is_same.then_some((place.0, index + 1))
                    })
                    .collect();
                if after.is_empty() {
                    let expected: Vec<_> = before
                        .iter()
                        .map(|place| next_visible(*place, hosts).map(|(_, past)| past.event.position()))
                        .collect();
                    return Err(format!(
                        "was told {kind} {id} of {} after {last_id:?}; next is {expected:?}",
                        record.agent_id
                    ));
                }
                places = Some(after);
            }
        }
        last_id = Some(told.id());
    }
    let places = places.unwrap_or_default();
    let place = places.iter().find(|(host, _)| *host == primary);
    let Some(place) = place else { return Err(format!("ends in another history, at {last_id:?}")) };
    match next_visible(*place, hosts) {
        Some((_, past)) => Err(format!("ends at {last_id:?}, before {:?}", past.event.position())),
        None => Ok(()),
    }
}

/// Returns the positions of an id in the histories.
fn find(id: Position, hosts: &[Host]) -> Places {
    let place = |(host, of): (usize, &Host)| {
        let is_start = id == Position { revision: 0, mark: 0 };
        let count = if is_start { Some(0) } else { of.find(id).map(|index| index + 1) };
        count.map(|count| (host, count))
    };
    hosts.iter().enumerate().filter_map(place).collect()
}

fn next_visible((host, from): (usize, usize), hosts: &[Host]) -> Option<(usize, &Past)> {
    let mut rest = hosts[host].history.iter().enumerate().skip(from);
    rest.find(|(_, past)| past.event.kind != EventKind::Internal)
}
