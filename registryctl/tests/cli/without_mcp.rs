//! The program without the feature `mcp`.

use crate::support::{program, text};

#[test]
fn it_says_how_it_is_built_with_mcp() {
    let output = program().arg("mcp").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let reason = text(&output.stderr);
    assert!(reason.contains("--features mcp"), "{reason}");
}
