//! Input of an import: a file or standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

/// A file that can be read more than once.
pub(crate) trait Source: BufRead + Seek {}

impl<T: BufRead + Seek> Source for T {}

/// Opens a file, or standard input if its name is `-`.
pub(crate) fn open(file: &Path) -> io::Result<Box<dyn Source>> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().read_to_end(&mut bytes)?;
    } else {
        let mut opened = File::open(file)?;
        if opened.rewind().is_ok() {
            return Ok(Box::new(BufReader::new(opened)));
        }
        opened.read_to_end(&mut bytes)?;
    }
    // A pipe cannot be read twice.
    Ok(Box::new(Cursor::new(bytes)))
}
