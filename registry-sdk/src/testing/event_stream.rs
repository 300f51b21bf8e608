//! The mock registry's event streams.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use hyper::body::{Bytes, Frame};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::faults::{Shared, StreamEnd};
use super::log::Cursor;
use super::request_log::RequestLog;
use crate::contract::event::DRAINING_EVENT;

/// Interval of the comments of an event stream that has nothing else to send.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Interval of the checks for missed deadlines while an event stream is open.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Streams the changes after a cursor, with comments while there are none, until the streams are ended.
pub(super) fn follow(
    shared: Arc<Shared>,
    cursor: Cursor,
) -> impl futures_util::Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync {
    let (log, ends) = (shared.request_log.subscribe(), shared.ends.subscribe());
    let follower = Follower { shared, cursor, log, ends, is_over: false };
    stream::unfold(follower, |mut follower| async move { Some((follower.next().await?, follower)) })
}

/// An event stream.
struct Follower {
    shared: Arc<Shared>,
    cursor: Cursor,
    log: watch::Receiver<RequestLog>,
    ends: watch::Receiver<StreamEnd>,
    is_over: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<io::Result<Frame<Bytes>>> {
        if self.is_over {
            return None;
        }
        let comment_due = Instant::now() + KEEP_ALIVE_INTERVAL;
        loop {
            if self.ends.has_changed().unwrap_or(true) {
                self.is_over = true;
                return Some(self.end());
            }
            let (news, cursor) = self.shared.lock().state.log().after(self.cursor);
            self.cursor = cursor;
            if !news.is_empty() {
                return Some(Ok(Frame::data(Bytes::from(news))));
            }
            if Instant::now() >= comment_due {
                return Some(Ok(Frame::data(Bytes::from_static(b": keep-alive\n\n"))));
            }
            tokio::select! {
                // Changes come only from requests or with time.
                _ = self.log.changed() => {}
                () = sleep(EXPIRY_CHECK_INTERVAL) => {}
                _ = self.ends.changed() => self.ends.mark_changed(),
            }
        }
    }

    fn end(&self) -> io::Result<Frame<Bytes>> {
        match *self.ends.borrow() {
            StreamEnd::Cut => Err(io::Error::other("cut off on purpose")),
            StreamEnd::Overrun => {
                let mut inner = self.shared.lock();
                let log = inner.state.log();
                let (mut last, _) = log.after(self.cursor);
                last.extend(log.overrun());
                Ok(Frame::data(Bytes::from(last)))
            }
            StreamEnd::Draining => {
                let last = format!("event: {DRAINING_EVENT}\ndata: {{}}\n\n");
                Ok(Frame::data(Bytes::from(last)))
            }
        }
    }
}
