//! Files that an export leaves, also if it does not end well.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Stdio};

use registry_sdk::testing::MockRegistry;
use test_support::send_signal;

use super::support::{Ended, agent, agents, export, path, registryctl, run, text, writes};

/// The names in a folder.
fn names(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_replaced_only_by_a_whole_export() {
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
    // The second page is not there: a client tries again, and then it gives up.
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
    // Readers of the last one are those of the next one, and a link stays one.
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
async fn an_export_that_is_not_written_whole_fails() {
    let registry = MockRegistry::start().await;
    for number in 0..450 {
        registry.client().register(&agent(&format!("a{number:03}"))).await.unwrap();
    }
    // A device is written to, and not replaced.
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", "/dev/full"]);
    assert!(code == Some(1) && reasons.contains("cannot write /dev/full: "), "{reasons}");
    assert_eq!(run(&registry.url(), &["export", "/dev/null"]).code, Some(0));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = registryctl(&registry.url(), &["export"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    // A reader that ends, such as a compressor on a full disk.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = registryctl(&registry.url(), &["export", "-"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let reasons = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{reasons}");
    assert!(reasons.contains("the export is not complete"), "{reasons}");
    assert!(writes(&registry).iter().all(|(request, _)| request == "POST /register"));
}

/// An export that waits for the registry's answer, which does not come.
async fn waiting_export(registry: &MockRegistry, name: &str) -> Child {
    let is_list = |path: &str| path == "/agents";
    let lists = registry.request_log().0.iter().filter(|request| is_list(&request.path)).count();
    registry.hang(1);
    let running = registryctl(&registry.url(), &["export", name]).stderr(Stdio::piped()).spawn().unwrap();
    registry.wait_until(|log| log.0.iter().filter(|request| is_list(&request.path)).count() > lists).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_export_leaves_no_draft() {
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
    // Nobody can tidy up then. The next one does.
    let mut running = waiting_export(&registry, &name).await;
    running.kill().unwrap();
    running.wait().unwrap();
    let Ended { code, reasons, .. } = run(&registry.url(), &["export", &name]);
    assert_eq!((code, &*reasons), (Some(0), ""));
    assert_eq!(names(&folder), ["agents.jsonl"]);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_exports_to_one_file_the_second_is_refused() {
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

/// Whoever may write to the folder must not choose another file that is overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_place_of_the_draft_is_not_followed() {
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
async fn a_link_is_written_through_whether_its_target_exists_or_not() {
    let registry = MockRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("exports")).unwrap();
    // A link to a link, as seen from its own folder.
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
