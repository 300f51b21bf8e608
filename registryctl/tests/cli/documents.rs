//! The commands in the documentation are valid.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn documented_commands_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documents = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for path in documents.filter(|path| path.extension().is_some_and(|it| it == "md")) {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("registryctl ")) {
            // Without a comment, a pipe or a redirection.
            let arguments =
                [" #", " |", " >", " 2>"].iter().fold(line, |line, end| line.split(end).next().unwrap());
            // The shell removes the quotes, and `--help` keeps the command from running.
            let command = format!("exec {} {arguments} --help", env!("CARGO_BIN_EXE_registryctl"));
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: registryctl {arguments}: {error}", path.display());
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} commands were found");
}
