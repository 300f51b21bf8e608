//! Threads of their own for what costs much, so that it takes no more than its part of the machine: a flood of searches
//! shares the cores with the runtime that answers heartbeats, as the operating system divides them, and does not stand in one
//! queue with them. The pattern is M. Nygard's ("Release It!", bulkheads).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// As many threads as there are cores. They end with it. How many jobs may wait is for who admits them to bound.
#[derive(Debug)]
pub(crate) struct Bulkhead {
    jobs: Sender<Job>,
}

impl Bulkhead {
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..thread::available_parallelism().map_or(1, Into::into) {
            let waiting = waiting.clone();
            thread::Builder::new().name("registry-reads".to_owned()).spawn(move || work(&waiting))?;
        }
        Ok(Self { jobs })
    }

    /// Runs a job, when its turn comes; `None` where it panicked. Whoever does not wait any more is not worked for.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let job = move || {
            if !answer.is_closed() {
                // Who has gone meanwhile has lost nothing but the answer.
                let _ = answer.send(job());
            }
        };
        self.jobs.send(Box::new(job)).ok()?;
        answered.await.ok()
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let next = waiting.lock().recv();
        let Ok(job) = next else { return };
        // A job that panics has lost its answer, and costs nobody else theirs; the panic itself is in the log.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}
