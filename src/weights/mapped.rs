//! A file in memory, mapped read-only.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::{Error, Result};

/// A file mapped read-only. Clones of its [`Bytes`] keep the mapping alive.
pub struct MappedFile {
    path: PathBuf,
    bytes: Bytes,
}

impl MappedFile {
    /// Maps a regular file. Errors: `file.io`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "cannot be opened", &e))?;
        let length = file.metadata().map_err(|e| Error::io(path, "cannot be examined", &e))?;
        if !length.is_file() {
            return Err(Error::bad_file("file.io", format!("{}: not a regular file", path.display())));
        }
        if length.len() == 0 {
            return Ok(Self { path: path.into(), bytes: Bytes::new() });
        }
        // SAFETY: the mapping is private and read-only. That nobody truncates the file while it is mapped is a
        // condition of use that the documentation of `lite3r` states; every reader of mapped weights relies on it.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot be mapped", &e))?;
        Ok(Self { path: path.into(), bytes: Bytes::from_owner(map) })
    }

    /// What is in memory anyway, without a path.
    pub fn held(bytes: Vec<u8>) -> Self {
        Self { path: PathBuf::new(), bytes: bytes.into() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole content.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedFile({}, {} bytes)", self.path.display(), self.bytes.len())
    }
}
