//! Tensor data in other files, which must lie in the folder of the model.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::proto::StringStringEntryProto;
use crate::{Error, weights::MappedFile};

/// The folder of a model, and the files of it that are mapped already.
pub struct Folder {
    path: PathBuf,
    files: HashMap<String, Arc<MappedFile>>,
}

/// A range of a file.
pub struct Location {
    /// The file.
    pub file: Arc<MappedFile>,
    /// Where the data begin.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

/// Why data cannot be had.
pub enum Trouble {
    /// The file does not exist.
    Missing(String),
    /// The entry or the file is not what it should be.
    Bad(String),
}

impl Folder {
    /// The folder `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), files: HashMap::new() }
    }

    /// The range that the entries name, `bytes` long.
    pub fn locate(&mut self, entries: &[StringStringEntryProto], bytes: usize) -> Result<Location, Trouble> {
        let get = |key: &str| entries.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| -> Result<Option<usize>, Trouble> {
            let parsed = get(key).map(str::parse).transpose();
            parsed.map_err(|_| Trouble::Bad(format!("external data: {key} `{}` is no size", get(key).unwrap_or(""))))
        };
        let name = get("location").ok_or_else(|| Trouble::Bad("external data without a location".into()))?;
        let (start, length) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(bytes));
        if length != bytes {
            return Err(Trouble::Bad(format!("external data: length {length}, but the tensor has {bytes} bytes")));
        }
        let file = self.open(name)?;
        let size = file.bytes().len();
        match start.checked_add(length) {
            Some(end) if end <= size => Ok(Location { file, start, end }),
            _ => Err(Trouble::Bad(format!("external data: {length} bytes at {start} of `{name}`, which has {size}"))),
        }
    }

    fn open(&mut self, name: &str) -> Result<Arc<MappedFile>, Trouble> {
        if let Some(file) = self.files.get(name) {
            return Ok(file.clone());
        }
        let inside = |c| matches!(c, Component::Normal(_) | Component::CurDir);
        if name.is_empty() || !Path::new(name).components().all(inside) {
            return Err(Trouble::Bad(format!("external data: `{name}` is not a path within the folder of the model")));
        }
        let path = self.path.join(name);
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Trouble::Missing(format!("external data: there is no file {}", path.display())));
            }
            Err(e) => return Err(Trouble::Bad(Error::io(&path, "cannot be found", &e).problems.remove(0))),
        };
        let folder = self.path.canonicalize();
        let folder =
            folder.map_err(|e| Trouble::Bad(Error::io(&self.path, "cannot be found", &e).problems.remove(0)))?;
        if !real.starts_with(&folder) {
            return Err(Trouble::Bad(format!("external data: `{name}` is a link out of the folder of the model")));
        }
        let file = MappedFile::open(&real).map_err(|mut e| Trouble::Bad(e.problems.remove(0)))?;
        let file = Arc::new(file);
        self.files.insert(name.into(), file.clone());
        Ok(file)
    }
}
