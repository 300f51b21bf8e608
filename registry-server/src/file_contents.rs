//! The content of files at one moment.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
pub(crate) type Digest = [u8; 32];

/// Files as they were read, so that the compared content is the content that is used.
#[derive(Debug)]
pub(crate) struct FileContents(BTreeMap<PathBuf, io::Result<Vec<u8>>>);

impl FileContents {
    pub(crate) fn read<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        Self(paths.map(|path| (path.to_owned(), std::fs::read(path))).collect())
    }

    /// Returns the content of a file, or the error from reading it.
    pub(crate) fn get(&self, path: &Path) -> io::Result<&[u8]> {
        match self.0.get(path) {
            Some(Ok(content)) => Ok(content),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Returns a digest of all files.
    pub(crate) fn digest(&self) -> Digest {
        let mut all = Sha256::new();
        for content in self.0.values() {
            match content {
                Ok(content) => all.update(Sha256::digest(content)),
                // Cannot equal a file's digest, since the length differs.
                Err(error) => all.update(format!("cannot be read: {:?}", error.kind())),
            }
        }
        all.finalize().into()
    }
}
