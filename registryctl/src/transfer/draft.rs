//! Atomic writing of a file.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Maximum length of a chain of symbolic links, as in Linux.
const MAX_LINKS: usize = 40;

/// A file that gets its final name once it is complete.
///
/// Until then it is in the same folder, under a fixed name: the next export overwrites the draft of one that was killed.
pub(super) struct Draft {
    file: File,
    /// Path of the draft, and final path. `None` for a device or a pipe, which is written directly.
    names: Option<(PathBuf, PathBuf)>,
}

impl Draft {
    pub(super) fn create(name: &Path) -> io::Result<Self> {
        let present = fs::metadata(name).ok();
        if present.as_ref().is_some_and(|present| !present.is_file()) {
            return Ok(Self { file: File::options().write(true).open(name)?, names: None });
        }
        let name = follow_links(name)?;
        let mut draft = name.clone().into_os_string();
        draft.push(".draft");
        let draft = PathBuf::from(draft);
        let file = lock(&draft)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", draft.display())))?;
        let draft = Self { file, names: Some((draft, name)) };
        if let Some(present) = present {
            // A user without permission to read the last export may not read this one either.
            draft.file.set_permissions(present.permissions())?;
        }
        draft.file.set_len(0)?;
        Ok(draft)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns whether there is a draft to remove if the export is interrupted.
    pub(super) fn has_name(&self) -> bool {
        self.names.is_some()
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        let Some((draft, name)) = &self.names else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(draft, name)?;
        self.names = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some((draft, _)) = &self.names {
            let _ = fs::remove_file(draft);
        }
    }
}

/// Returns the target of a symbolic link, whether or not the target exists.
fn follow_links(name: &Path) -> io::Result<PathBuf> {
    let mut name = name.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&name) {
            Ok(target) => name = name.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(name),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Opens a draft and locks it against other exports.
fn lock(draft: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(draft)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(io::Error::other("another export is writing it")),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another export may have renamed the file since it was opened, or the path may be a symbolic link to some other file:
    // neither may be overwritten.
    let opened = file.metadata()?;
    let is_opened = |named: fs::Metadata| (named.dev(), named.ino()) == (opened.dev(), opened.ino());
    if !fs::symlink_metadata(draft).is_ok_and(is_opened) {
        return Err(io::Error::other(
            "the file was replaced, or is a symbolic link: remove it if it is a link, then export again",
        ));
    }
    Ok(file)
}
