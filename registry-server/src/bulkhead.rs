//! A thread pool for expensive reads, separate from the runtime that answers heartbeats.
//!
//! A flood of searches then competes with heartbeats for CPU time only, which the operating system divides
//! fairly, and never delays them in a common queue. The pattern is the bulkhead of M. Nygard's "Release It!".

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of one thread per core; the threads end when it is dropped.
///
/// Its queue is unbounded: admission control limits how many jobs there are.
#[derive(Debug)]
pub(crate) struct Bulkhead {
    jobs: Sender<Job>,
}

impl Bulkhead {
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..thread::available_parallelism().map_or(1, Into::into) {
            let queue = queue.clone();
            thread::Builder::new().name("registry-reads".to_owned()).spawn(move || run_worker(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs a job on the pool; returns `None` if it panicked.
    ///
    /// A job is skipped if the caller has given up by the time its turn comes.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (result_tx, result_rx) = oneshot::channel();
        let job = move || {
            if !result_tx.is_closed() {
                // A caller that gave up only loses the response.
                let _ = result_tx.send(job());
            }
        };
        self.jobs.send(Box::new(job)).ok()?;
        result_rx.await.ok()
    }
}

fn run_worker(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().recv();
        let Ok(job) = next else { return };
        // A panic only loses the job's own result. The panic hook has already logged it.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}
