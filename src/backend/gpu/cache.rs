//! Where what this machine has compiled is kept between runs.

use std::path::{Path, PathBuf};

use crate::{Error, Result, atomic};

/// The folder that `LITE3R_CACHE` names, otherwise `lite3r` in the user's cache folder; `None` without a place for caches.
pub fn folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let user = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    folder("LITE3R_CACHE").or_else(|| Some(user()?.join("lite3r")))
}

/// Writes a file, whole or not at all. Errors: `file.io`.
pub fn keep(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot be made", &e))?;
    }
    atomic::write_bytes(path, bytes)
}
