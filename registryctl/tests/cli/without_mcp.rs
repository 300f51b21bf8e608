//! The program without the feature `mcp`.

use crate::support::{program, text};

#[test]
fn error_says_how_to_build_with_mcp() {
    let output = program().arg("mcp").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let reason = text(&output.stderr);
    assert!(reason.contains("--features mcp"), "{reason}");
}
