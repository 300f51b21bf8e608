//! The SQLite file is replaced with an older copy while the server is stopped.

use std::path::{Path, PathBuf};
use std::time::Instant;

use registry_sdk::Error;
use registry_sdk::contract::AgentStatus::{Busy, Offline};

use super::scene::{Position, resumes};
use super::truth::Truth;
use super::{Write, end, register, status};
use crate::support::{EventStream, Server, Store, settled};

#[tokio::test(flavor = "multi_thread")]
async fn restored_file_with_no_further_registrations() {
    restore(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_file_with_2_further_registrations() {
    restore(2).await;
}

/// As many as were lost.
#[tokio::test(flavor = "multi_thread")]
async fn restored_file_with_4_further_registrations() {
    restore(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_file_with_10_further_registrations() {
    restore(10).await;
}

async fn restore(registrations: usize) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::sqlite_in(folder.path());
    let mut server = Server::running(&store.url, &[]).await;
    let stream = EventStream::open(&server, 0).await;
    for number in 0..4 {
        register(format!("agent-{number}")).make(&server).await;
    }
    server.stop().await;
    let copy = tempfile::tempdir().unwrap();
    copy_files(folder.path(), copy.path());

    server.start().await;
    let kept = Truth::of_sqlite(&store.url).await.revision;
    let writes = [
        status("agent-0", Busy),
        register("lost"),
        Write::Remove("agent-1".to_owned()),
        status("agent-2", Offline),
    ];
    for write in &writes {
        write.make(&server).await;
    }
    let whole = async || stream.has(&Truth::of_sqlite(&store.url).await.changes);
    settled("the stream has every change before the file is restored", whole).await;
    let positions = stream.blocks().into_iter().filter_map(|block| {
        block.change().map(|change| Position { id: block.id.unwrap(), revision: change.revision })
    });
    let (kept, lost): (Vec<_>, Vec<_>) = positions.partition(|position| position.revision <= kept);
    assert_eq!((kept.len(), lost.len()), (4, writes.len()));
    server.stop().await;
    for file in files(folder.path()) {
        std::fs::remove_file(file).unwrap();
    }
    copy_files(copy.path(), folder.path());

    server.start().await;
    let began = Instant::now();
    for number in 0..registrations {
        register(format!("new-{number}")).make(&server).await;
    }
    let truth = Truth::of_sqlite(&store.url).await;
    settled("the server equals its file", async || truth.is_shown_by(&server).await).await;
    println!("{registrations} registrations later the server equals its file after {:.2?}", began.elapsed());
    let heartbeat = server.patient_client().heartbeat("lost").await;
    assert!(matches!(heartbeat, Err(Error::NotFound { .. })), "{heartbeat:?}");
    resumes(&server, &truth.changes, &kept, &lost).await;
    // The stream itself was resumed as soon as the server was back.
    settled("the stream has a reset or every change once", whole).await;
    end(&mut server, "after the file was restored").await;
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())
}

fn copy_files(from: &Path, to: &Path) {
    for file in files(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}
