//! Files that an export leaves behind, whether or not it succeeds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Stdio};

use registry_sdk::testing::MockRegistry;
use test_support::send_signal;

use super::support::{Ended, agent, agents, export, path, registryctl, run, text, writes};

/// Names of the files in a folder.
fn names(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn file_is_only_replaced_by_a_complete_export() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, name) = path(&folder, "agents.jsonl");
    let (link, link_name) = path(&folder, "latest");
    for number in 0..450 {
        registry.client().register(&agent(&format!("a{number:03}"))).await.unwrap();
    }
    assert_eq!(run(&registry.url(), &["export", &name]).code, Some(0));
    let whole = fs::read_to_string(&file).unwrap();
    let lines = export(&registry.url());
    assert_eq!(agents(&whole.lines().map(str::to_owned).collect::<Vec<_>>()), agents(&lines));
    assert_eq!(lines.len(), 452);
    // The client retries the second page, then gives up.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    symlink("agents.jsonl", &link).unwrap();
    registry.client().register(&agent("b")).await.unwrap();
    for target in [&name, &link_name] {
        registry.fail_next(100, 503);
        let Ended { code, reasons, .. } = run(&registry.url(), &["export", target]);
        assert_eq!(code, Some(4), "{reasons}");
        assert_eq!(fs::read_to_string(&file).unwrap(), whole);
        assert_eq!(names(&folder), ["agents.jsonl", "latest"]);
        registry.heal();
    }
    // The new file keeps the permissions of the old one, and a symbolic link remains a link.
    assert_eq!(run(&registry.url(), &["export", &link_name]).code, Some(0));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 453);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(&folder), ["agents.jsonl", "latest"]);
    let (_, nowhere) = path(&folder, "missing/agents.jsonl");
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &nowhere]);
    assert!(code == Some(1) && reasons.contains(&format!("cannot write {nowhere}: ")), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn incompletely_written_export_fails() {
    let registry = MockRegistry::start().await;
    for number in 0..450 {
        registry.client().register(&agent(&format!("a{number:03}"))).await.unwrap();
    }
    // A device is written to directly, and not replaced.
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", "/dev/full"]);
    assert!(code == Some(1) && reasons.contains("cannot write /dev/full: "), "{reasons}");
    assert_eq!(run(&registry.url(), &["export", "/dev/null"]).code, Some(0));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = registryctl(&registry.url(), &["export"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    // A reader that closes the pipe, such as a compressor on a full disk.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = registryctl(&registry.url(), &["export", "-"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let reasons = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{reasons}");
    assert!(reasons.contains("the export is incomplete"), "{reasons}");
    assert!(writes(&registry).iter().all(|(request, _)| request == "POST /register"));
}

/// Starts an export that waits for a response that never arrives.
async fn waiting_export(registry: &MockRegistry, name: &str) -> Child {
    let is_list = |path: &str| path == "/agents";
    let lists = registry.request_log().0.iter().filter(|request| is_list(&request.path)).count();
    registry.hang(1);
    let running = registryctl(&registry.url(), &["export", name]).stderr(Stdio::piped()).spawn().unwrap();
    registry.wait_until(|log| log.0.iter().filter(|request| is_list(&request.path)).count() > lists).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_export_leaves_no_draft() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, name) = path(&folder, "agents.jsonl");
    fs::write(&file, "the last one").unwrap();
    for signal_name in ["INT", "TERM"] {
        let running = waiting_export(&registry, &name).await;
        send_signal(running.id(), signal_name);
        let Ended { code, reasons, .. } = running.wait_with_output().unwrap().into();
        assert!(code == Some(1) && reasons.contains("interrupted"), "{signal_name}: {code:?} {reasons}");
        assert_eq!(names(&folder), ["agents.jsonl"], "{signal_name}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "the last one");
    }
    // A killed export cannot remove its draft. The next export does.
    let mut running = waiting_export(&registry, &name).await;
    running.kill().unwrap();
    running.wait().unwrap();
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &name]);
    assert_eq!((code, &*reasons), (Some(0), ""));
    assert_eq!(names(&folder), ["agents.jsonl"]);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_concurrent_export_to_the_same_file_fails() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (_, name) = path(&folder, "agents.jsonl");
    let first = waiting_export(&registry, &name).await;
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &name]);
    assert!(code == Some(1) && reasons.contains("another export is writing it"), "{reasons}");
    send_signal(first.id(), "TERM");
    first.wait_with_output().unwrap();
    assert_eq!(run(&registry.url(), &["export", &name]).code, Some(0));
}

/// A user who can write to the folder must not be able to have another file overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn symbolic_link_in_place_of_the_draft_is_not_followed() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (victim, _) = path(&folder, "victim");
    let (_, name) = path(&folder, "agents.jsonl");
    fs::write(&victim, "precious").unwrap();
    symlink("victim", folder.path().join("agents.jsonl.draft")).unwrap();
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &name]);
    assert!(code == Some(1) && reasons.contains("agents.jsonl.draft"), "{reasons}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn symbolic_link_is_followed_whether_or_not_its_target_exists() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("exports")).unwrap();
    // A relative link to another link.
    symlink("exports/latest", folder.path().join("latest")).unwrap();
    symlink("today.jsonl", folder.path().join("exports/latest")).unwrap();
    let (_, link) = path(&folder, "latest");
    for _ in 0..2 {
        assert_eq!(run(&registry.url(), &["export", &link]).code, Some(0));
        for link in ["latest", "exports/latest"] {
            assert!(fs::symlink_metadata(folder.path().join(link)).unwrap().is_symlink(), "{link}");
        }
        let target = folder.path().join("exports/today.jsonl");
        assert!(fs::symlink_metadata(&target).unwrap().is_file());
        assert_eq!(fs::read_to_string(&target).unwrap().lines().count(), 2);
    }
    let (_, circle) = path(&folder, "circle");
    symlink("circle", &circle).unwrap();
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &circle]);
    assert!(code == Some(1) && reasons.contains(&format!("cannot write {circle}: ")), "{reasons}");
}
