//! Watchers, which read the event streams of servers and switch servers when a stream ends.

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::AgentRecord;
use tokio::time::{sleep, timeout};

use super::server::Server;
use super::world::World;
use crate::registry::{LogRead, StreamStart};
use crate::store::Position;

/// A message to a watcher.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// The stream starts after the event with this id.
    Begun {
        id: Position,
        last_event_id: Option<Position>,
    },
    Event {
        id: Position,
        kind: String,
        record: Box<AgentRecord>,
    },
    Reset {
        id: Position,
    },
}

impl Told {
    /// Returns the id after which the watcher continues.
    pub(super) fn id(&self) -> Position {
        match self {
            Self::Begun { id, .. } | Self::Event { id, .. } | Self::Reset { id } => *id,
        }
    }
}

/// All messages to a watcher, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Stream {
    pub(super) told: Vec<Told>,
    pub(super) last_id: Option<Position>,
    pub(super) server: usize,
}

pub(super) fn spawn(world: &Arc<World>) {
    for number in 0..world.profile.servers {
        world.records.lock().streams.push(Stream::default());
        let watch = watch(world.clone(), number);
        tokio::spawn(world.end.clone().run_until_cancelled_owned(watch));
    }
}

/// Watches one server after another.
async fn watch(world: Arc<World>, number: usize) {
    let (mut index, mut rng) = (number, world.rng(&format!("watcher {number}")));
    loop {
        let Some(server) = world.server(index) else {
            sleep(Duration::from_millis(100)).await;
            index = (index + 1) % world.profile.servers;
            continue;
        };
        let lasts = Duration::from_millis(rng.u64(500..20_000));
        let _ = timeout(lasts, read(&world, &server, number)).await;
        index = rng.usize(..world.profile.servers);
    }
}

async fn read(world: &World, server: &Server, number: usize) {
    let registry = server.registry();
    let last_id = {
        let mut records = world.records.lock();
        records.streams[number].server = server.index;
        records.streams[number].last_id
    };
    let mut changed = registry.subscribe();
    let start = last_id.map_or(StreamStart::Last(0), StreamStart::After);
    let (mut cursor, _) = registry.cursor(start).await;
    let begun_at = cursor.position();
    let mut is_first = true;
    while !server.killed.is_cancelled() {
        let read = registry.read_events(&mut cursor);
        if is_first && matches!(read, LogRead::UpToDate | LogRead::Frames(_)) {
            tell(world, number, Told::Begun { id: begun_at, last_event_id: last_id });
        }
        match read {
            LogRead::UpToDate => {
                tokio::select! {
                    biased;
                    () = server.killed.cancelled() => return,
                    _ = changed.changed() => {}
                }
            }
            LogRead::Frames(frames) => tell_frames(world, number, &frames),
            LogRead::Reset(id) => tell(world, number, Told::Reset { id }),
            // If changes were missed before a stream begins, its first event is a reset, as in `GET /events`.
            LogRead::Lagged(id) if is_first => tell(world, number, Told::Reset { id }),
            // The stream ends, and the watcher resumes after the last event that it read.
            LogRead::Lagged(_) => return,
        }
        is_first = false;
    }
}

fn tell(world: &World, number: usize, told: Told) {
    world.sim.lock().trace.add(|| match &told {
        Told::Event { id, kind, record } => format!("watcher {number}: {id} {kind} {}", record.agent_id),
        told => format!("watcher {number}: {told:?}"),
    });
    let mut records = world.records.lock();
    let stream = &mut records.streams[number];
    stream.last_id = Some(told.id());
    stream.told.push(told);
}

/// Decodes server-sent events.
fn tell_frames(world: &World, number: usize, frames: &[u8]) {
    for frame in String::from_utf8_lossy(frames).split_terminator("\n\n") {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
        let record = field("data: ").and_then(|data| serde_json::from_str(data).ok());
        let id = field("id: ").and_then(|id| id.parse().ok());
        let (Some(id), Some(kind), Some(record)) = (id, field("event: "), record) else {
            world.violation(format!("an event cannot be read: {frame}"));
            continue;
        };
        let event = Told::Event { id, kind: kind.to_owned(), record: Box::new(record) };
        tell(world, number, event);
    }
}
