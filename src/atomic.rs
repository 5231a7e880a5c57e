//! Files that appear whole or not at all: written under a temporary name beside the target, then renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Error, Result};

/// The stream that [`write`] hands to its writer; it can seek.
pub type Output = BufWriter<File>;

/// Creates the folder of `path` where it is missing, lets `fill` write a temporary file beside it and renames that to
/// `path`. An existing file is replaced.
///
/// # Errors
/// `file.io`, naming `path`. The temporary file is removed and an existing file stays as it was.
pub fn write(path: &Path, fill: impl FnOnce(&mut Output) -> io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create the folder", &e))?;
    let temporary = temporary_name(folder, path)?;
    let written = fill_file(&temporary, fill).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        // The write has failed already; that is the error to report.
        let _ = fs::remove_file(&temporary);
        Error::io(path, "cannot write", &e)
    })
}

/// [`write`] for bytes at hand.
///
/// # Errors
/// As [`write`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, |out| out.write_all(bytes))
}

fn temporary_name(folder: &Path, path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| Error::usage("file.name", format!("{}: is not the name of a file", path.display())))?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(folder.join(format!(".{}.{}.{count}.tmp", name.to_string_lossy(), std::process::id())))
}

fn fill_file(temporary: &Path, fill: impl FnOnce(&mut Output) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(OpenOptions::new().write(true).create_new(true).open(temporary)?);
    fill(&mut out)?;
    out.flush()?;
    // Data before name: after a crash the target is either the old file or the whole new one.
    out.get_ref().sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_replaces_and_makes_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        write_bytes(&path, b"one").unwrap();
        write_bytes(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(&dir.path().join("a")), ["b.txt"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_bytes(&path, b"old").unwrap();
        let error = write(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("no more"))
        })
        .unwrap_err();
        assert_eq!((error.code, error.exit_code()), ("file.io", 4));
        assert!(error.to_string().contains("no more"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("taken")).unwrap();
        assert_eq!(write_bytes(&dir.path().join("taken"), b"x").unwrap_err().code, "file.io");
        assert_eq!(names(dir.path()), ["taken"]);
        assert_eq!(write_bytes(&dir.path().join(".."), b"x").unwrap_err().code, "file.name");
    }
}
