//! The `.l3r` container.
//!
//! ```text
//! offset  size  content
//! 0       8     magic "LITE3R\r\n"
//! 8       4     version, u32 little-endian
//! 12      8     length of the header, u64 little-endian
//! 20      n     header, JSON
//! 20+n    32    BLAKE3 of everything before
//!               zeros up to a multiple of 256: the start of the data
//!               weights in order, each followed by zeros up to a multiple of 256
//! ```
//!
//! Offsets in the header count from the start of the data. A weight is embedded, or a range of another file that is
//! named without its folder; both carry their BLAKE3. The hashes detect damage; they do not say who made the plan.
//! There is one way to write a plan down, and whatever differs is an error: other padding, gaps, trailing bytes.

use std::{
    collections::HashMap,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use lite3r_ir::ValueType;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{ALIGN, Entry, Header, Meta, Plan, WeightInfo, text, weights::PlanWeights};
use crate::{
    Error, Result, atomic,
    weights::{MappedFile, Weight},
};

/// The first bytes of a plan. The line ends are damaged by transfers that take the file for text.
pub const MAGIC: [u8; 8] = *b"LITE3R\r\n";

/// The only version that is read and written.
pub const VERSION: u32 = 1;

const HEADER_AT: usize = 20;
const HASH: usize = 32;

/// Where the weights of a plan are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// All in the plan.
    #[default]
    Embedded,
    /// Those that the model's files hold as they are stay there; derived ones are in the plan.
    ByReference,
}

/// How to open a plan.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Files and folders to look in for weights by reference, before the folder of the plan.
    pub weights: Vec<PathBuf>,
    /// Whether to compare every weight with its hash. Reads all of them once.
    pub verify: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { weights: Vec::new(), verify: true }
    }
}

/// The header as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHeader {
    producer: String,
    target: String,
    limits: std::collections::BTreeMap<String, u64>,
    meta: Meta,
    entries: Vec<Entry>,
    weights: Vec<FileWeight>,
    #[serde(default)]
    modules: std::collections::BTreeMap<String, u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileWeight {
    name: String,
    #[serde(with = "text::display")]
    ty: ValueType,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    state: bool,
    /// The file that holds it; none: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    offset: u64,
    bytes: u64,
    hash: String,
}

impl Plan {
    /// Writes the plan, whole or not at all. Computes what is still to be computed, and never
    /// holds all weights. Errors: `file.io`, `plan.weights`.
    pub fn save(&self, path: &Path, storage: Storage) -> Result<()> {
        self.save_with(path, storage, &mut |_| {})
    }

    /// As [`Plan::save`], and tells after every weight how many of [`Plan::weight_bytes`] are done.
    pub fn save_with(&self, path: &Path, storage: Storage, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut failure = None;
        let written = atomic::write(path, |out| {
            self.write(out, path, storage, progress).map_err(|e| {
                let told = std::io::Error::other(e.to_string());
                failure = Some(e);
                told
            })
        });
        written.map_err(|e| failure.unwrap_or(e))
    }

    fn write(
        &self,
        out: &mut atomic::Output,
        path: &Path,
        storage: Storage,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut done = 0;
        let io = |e: std::io::Error| Error::io(path, "cannot be written", &e);
        let mut weights = self.layout(storage);
        let header = self.file_header(&weights)?;
        let data = data_start(header.len());
        // The hashes are not known yet, but their length is.
        out.write_all(&vec![0; data]).map_err(io)?;
        self.weights.stream(&mut |index, bytes| {
            let (weight, bytes) = (&mut weights[index], bytes.as_slice());
            if weight.file.is_none() {
                weight.hash = hash(bytes);
                out.write_all(bytes).map_err(io)?;
                out.write_all(&vec![0; padding(bytes.len() as u64) as usize]).map_err(io)?;
            }
            done += weight.bytes;
            progress(done);
            Ok(())
        })?;
        let header = self.file_header(&weights)?;
        let mut head = Vec::with_capacity(data);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&(header.len() as u64).to_le_bytes());
        head.extend_from_slice(&header);
        head.extend_from_slice(blake3::hash(&head).as_bytes());
        head.resize(data, 0);
        out.seek(SeekFrom::Start(0)).map_err(io)?;
        out.write_all(&head).map_err(io)
    }

    /// Where each weight goes. Hashes of embedded weights are placeholders.
    fn layout(&self, storage: Storage) -> Vec<FileWeight> {
        let mut end = 0;
        let infos = self.header.weights.iter().zip(&self.weights.held);
        let place = |(info, held): (&WeightInfo, &Option<Weight>)| {
            let bytes = info.ty.bytes().map_or(0, |b| b as u64);
            let (name, ty, state) = (info.name.clone(), info.ty.clone(), info.state);
            let location = held.as_ref().and_then(Weight::location).filter(|_| storage == Storage::ByReference);
            let file = location.as_ref().and_then(|(file, _)| Some(file.path().file_name()?.to_str()?.to_string()));
            match (file, location, held) {
                (Some(file), Some((_, range)), Some(weight)) => FileWeight {
                    name,
                    ty,
                    state,
                    file: Some(file),
                    offset: range.start as u64,
                    bytes,
                    hash: hash(weight.bytes()),
                },
                _ => {
                    let offset = end;
                    end += bytes + padding(bytes);
                    FileWeight { name, ty, state, file: None, offset, bytes, hash: "0".repeat(2 * HASH) }
                }
            }
        };
        infos.map(place).collect()
    }

    fn file_header(&self, weights: &[FileWeight]) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            producer: &'a str,
            target: &'a str,
            limits: &'a std::collections::BTreeMap<String, u64>,
            meta: &'a Meta,
            entries: &'a [Entry],
            weights: &'a [FileWeight],
            #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
            modules: &'a std::collections::BTreeMap<String, u32>,
        }
        let Header { producer, target, limits, meta, entries, modules, .. } = &self.header;
        serde_json::to_vec(&Borrowed { producer, target, limits, meta, entries, weights, modules })
            .map_err(|e| Error::bad_file("plan.header", format!("the header cannot be written: {e}")))
    }

    /// Maps a plan. Errors: `file.io`, `plan.magic`, `plan.version`, `plan.truncated`, `plan.trailing`, `plan.corrupt`
    /// (damage that a hash or the padding shows), `plan.header`, `plan.check`, `plan.weight_file` (a file of weights is
    /// missing or too short), `plan.weight_hash` (it holds other weights).
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let (plan, hashes) = Self::open_unverified(path, options)?;
        if options.verify {
            hashes.verify()?;
        }
        Ok(plan)
    }

    /// As [`Plan::open`], and leaves it to the caller to compare the weights with their hashes, meanwhile or later.
    pub fn open_unverified(path: &Path, options: &OpenOptions) -> Result<(Self, Hashes)> {
        Self::of_file(MappedFile::open(path)?, options)
    }

    /// A plan whose file is in memory. Errors: as [`Plan::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let (plan, hashes) = Self::of_file(MappedFile::held(bytes), &OpenOptions::default())?;
        hashes.verify()?;
        Ok(plan)
    }

    fn of_file(file: MappedFile, options: &OpenOptions) -> Result<(Self, Hashes)> {
        let file = Arc::new(file);
        let path = file.path();
        let fail = |code, problem: String| Error::bad_file(code, format!("{}: {problem}", path.display()));
        let (header, data) = read_header(file.bytes()).map_err(|(code, problem)| fail(code, problem))?;
        let mut external = External { options, beside: path.parent().unwrap_or(Path::new("")), open: HashMap::new() };
        let mut held = Vec::with_capacity(header.weights.len());
        let mut problems = Vec::new();
        for weight in &header.weights {
            let (source, start) = match &weight.file {
                None => (file.clone(), data + weight.offset),
                Some(name) => match external.file(name) {
                    Ok(file) => (file, weight.offset),
                    Err(problem) => {
                        problems.push(problem);
                        continue;
                    }
                },
            };
            let range = usize::try_from(start).ok().zip(usize::try_from(weight.bytes).ok());
            let range = range.and_then(|(start, bytes)| Some(start..start.checked_add(bytes)?));
            match range.and_then(|range| Weight::mapped(weight.ty.clone(), source.clone(), range)) {
                Some(weight) => held.push(weight),
                None => problems.push(format!("{} ends before weight `{}`", source.path().display(), weight.name)),
            }
        }
        if !problems.is_empty() {
            problems.sort();
            problems.dedup();
            return Err(Error::all(crate::Kind::BadFile, "plan.weight_file", problems));
        }
        let hashes = |(info, weight): (&FileWeight, &Weight)| Hashed {
            name: info.name.clone(),
            file: info.file.clone(),
            hash: info.hash.clone(),
            weight: weight.clone(),
        };
        let hashes = Hashes { path: path.into(), weights: header.weights.iter().zip(&held).map(hashes).collect() };
        let infos = header.weights.into_iter().map(|w| WeightInfo { name: w.name, ty: w.ty, state: w.state }).collect();
        let FileHeader { producer, target, limits, meta, entries, modules, .. } = header;
        let header = Header { producer, target, limits, meta, entries, weights: infos, modules };
        let plan = Plan::new(header, PlanWeights::held(held)).map_err(|mut e| {
            e.problems.iter_mut().for_each(|p| *p = format!("{}: {p}", path.display()));
            e
        })?;
        Ok((plan, hashes))
    }
}

/// The header, and the offset of the data. Everything but the hashes of the weights is checked.
fn read_header(bytes: &[u8]) -> Result<(FileHeader, u64), (&'static str, String)> {
    let truncated = || ("plan.truncated", "the file is cut short".to_string());
    let corrupt = |what: &str| ("plan.corrupt", format!("{what}: the file is damaged"));
    let begins = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    if begins.is_empty() || begins != &MAGIC[..begins.len()] {
        return Err(("plan.magic", "not a plan".into()));
    }
    let version = bytes.get(8..12).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).ok_or_else(truncated)?;
    if version != VERSION {
        let problem =
            format!("a plan of version {version}; this lite3r reads version {VERSION}: compile the model again");
        return Err(("plan.version", problem));
    }
    let length = bytes.get(12..HEADER_AT).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let length = usize::try_from(length.ok_or_else(truncated)?).map_err(|_| truncated())?;
    let end = length.checked_add(HEADER_AT).filter(|end| *end < bytes.len()).ok_or_else(truncated)?;
    let recorded = bytes.get(end..).and_then(|rest| rest.get(..HASH)).ok_or_else(truncated)?;
    if blake3::hash(&bytes[..end]).as_bytes() != recorded {
        return Err(corrupt("the header does not have its hash"));
    }
    let header: FileHeader =
        serde_json::from_slice(&bytes[HEADER_AT..end]).map_err(|e| ("plan.header", format!("header: {e}")))?;

    let data = data_start(length);
    let mut expected = 0u64;
    let mut pads = Vec::with_capacity(header.weights.len() + 1);
    pads.push(end + HASH..data);
    for weight in &header.weights {
        let bad = |what: &str| ("plan.header", format!("weight `{}`: {what}", weight.name));
        if weight.ty.bytes().map(|b| b as u64) != Some(weight.bytes) || weight.hash.len() != 2 * HASH {
            return Err(bad("size or hash do not fit"));
        }
        if weight.file.is_none() {
            if weight.offset != expected {
                return Err(bad("does not follow the one before"));
            }
            let end = expected.checked_add(weight.bytes).ok_or_else(|| bad("is too large"))?;
            expected = end.checked_next_multiple_of(ALIGN).ok_or_else(|| bad("is too large"))?;
            let absolute = |at: u64| usize::try_from(at).ok()?.checked_add(data);
            pads.extend(absolute(end).zip(absolute(expected)).map(|(start, end)| start..end));
        }
    }
    let total = (data as u64).checked_add(expected).ok_or_else(truncated)?;
    match (bytes.len() as u64).cmp(&total) {
        std::cmp::Ordering::Less => return Err(truncated()),
        std::cmp::Ordering::Greater => {
            return Err(("plan.trailing", format!("{} bytes follow the end", bytes.len() as u64 - total)));
        }
        std::cmp::Ordering::Equal => {}
    }
    if pads.into_iter().any(|range| bytes[range].iter().any(|b| *b != 0)) {
        return Err(corrupt("the padding is not zero"));
    }
    Ok((header, data as u64))
}

/// The weights of a plan with what they should hash to.
pub struct Hashes {
    path: PathBuf,
    weights: Vec<Hashed>,
}

struct Hashed {
    name: String,
    /// The file that holds it; none: the plan itself.
    file: Option<String>,
    hash: String,
    weight: Weight,
}

impl Hashes {
    /// Compares every weight with its hash, on all cores. Errors: `plan.corrupt`, `plan.weight_hash`.
    pub fn verify(&self) -> Result<()> {
        let wrong: Vec<_> = self.weights.par_iter().filter(|w| hash(w.weight.bytes()) != w.hash).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let problems = wrong.iter().map(|w| {
            let place = w.file.clone().unwrap_or_else(|| self.path.display().to_string());
            format!("{place}: weight `{}` does not have its hash", w.name)
        });
        let code = if wrong.iter().any(|w| w.file.is_none()) { "plan.corrupt" } else { "plan.weight_hash" };
        Err(Error::all(crate::Kind::BadFile, code, problems.collect()))
    }
}

/// Files of weights by their bare name.
struct External<'o> {
    options: &'o OpenOptions,
    beside: &'o Path,
    open: HashMap<String, Result<Arc<MappedFile>, String>>,
}

impl External<'_> {
    fn file(&mut self, name: &str) -> Result<Arc<MappedFile>, String> {
        if let Some(known) = self.open.get(name) {
            return known.clone();
        }
        let found = self.find(name);
        self.open.insert(name.into(), found.clone());
        found
    }

    fn find(&self, name: &str) -> Result<Arc<MappedFile>, String> {
        let bare = Path::new(name).file_name().is_some_and(|n| n == name) && !name.contains(['/', '\\']);
        if !bare {
            return Err(format!("`{name}` is not the bare name of a file"));
        }
        let given = self.options.weights.iter().map(|path| match path.is_dir() {
            true => path.join(name),
            false => path.clone(),
        });
        let mut candidates = given.chain([self.beside.join(name)]);
        let path = candidates.find(|p| p.file_name().is_some_and(|n| n == name) && p.is_file());
        let path = path.ok_or_else(|| format!("weights `{name}` were not found: say where with `--weights`"))?;
        MappedFile::open(&path).map(Arc::new).map_err(|e| e.to_string())
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN) - bytes
}

/// Where the data begin, for a header of that many bytes.
fn data_start(header: usize) -> usize {
    (HEADER_AT + header + HASH).next_multiple_of(ALIGN as usize)
}
