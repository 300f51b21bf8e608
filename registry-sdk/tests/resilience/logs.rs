//! The log as an operator reads it.

use std::cell::RefCell;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

thread_local! {
    /// The receiver of this thread's events. A test's runtime has no other thread.
    static RECORDED: RefCell<Option<Logs>> = const { RefCell::new(None) };
}

/// All events of this thread at `info` and above, and all events of discovery, one line each: level, message and fields.
#[derive(Clone, Default)]
pub(crate) struct Logs(Arc<Mutex<Vec<String>>>);

impl Logs {
    /// Records until the end of the thread, which is that of the test.
    pub(crate) fn record() -> Self {
        // One subscriber for all tests, because subscribers of single threads would disable each other's events.
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Recorder)).unwrap();
        });
        let logs = Self::default();
        RECORDED.set(Some(logs.clone()));
        logs
    }

    /// Returns the lines that contain a text.
    pub(crate) fn with(&self, text: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

struct Recorder;

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_discovery = metadata.target().starts_with("registry_sdk::discovery");
        if !is_discovery
            && (*metadata.level() > Level::INFO || !metadata.target().starts_with("registry_sdk"))
        {
            return;
        }
        RECORDED.with_borrow(|recorded| {
            let Some(Logs(lines)) = recorded else { return };
            let mut line = Line(metadata.level().to_string());
            event.record(&mut line);
            lines.lock().unwrap().push(line.0);
        });
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
