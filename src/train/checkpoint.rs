//! Checkpoints: every state of a run and where it stands, in one safetensors file that is written whole or not at all.

use std::{collections::BTreeMap, path::Path};

use lite3r_ir::{Tensor, ValueType};
use safetensors::SafeTensors;

use crate::{Error, Kind, Result, weights};

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Steps that have been made.
    pub step: u64,
    /// Steps among them that were skipped for want of a finite gradient.
    pub skipped: u64,
    /// Weights and moments by name.
    pub states: BTreeMap<String, Tensor>,
}

const STEP: &str = "lite3r.step";
const SKIPPED: &str = "lite3r.skipped";

impl Checkpoint {
    /// Writes it. Errors: `file.io`, `train.checkpoint`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let notes = [(STEP, self.step), (SKIPPED, self.skipped)];
        weights::safetensors::write(path, &self.states, notes.map(|(key, n)| (key.to_string(), n.to_string())).into())
    }

    /// Reads one for a run with states of these names and types. Errors: `file.io`, those of
    /// [`weights::safetensors::open`], and `train.checkpoint` with every state that is missing, is of another type or
    /// belongs to another graph.
    pub fn open(path: &Path, expected: &BTreeMap<String, ValueType>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot be read", &e))?;
        let bad = |problem: String| Error::bad_file("train.checkpoint", format!("{}: {problem}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let notes = header.metadata().clone().unwrap_or_default();
        let note = |key: &str| {
            let number = notes.get(key).and_then(|n| n.parse().ok());
            number.ok_or_else(|| bad(format!("`{key}` is missing: it is no checkpoint of a run")))
        };
        let (step, skipped) = (note(STEP)?, note(SKIPPED)?);
        let given = weights::safetensors::open(path)?;
        let mut problems: Vec<String> = given
            .iter()
            .filter(|(name, _)| !expected.contains_key(*name))
            .map(|(name, _)| format!("{}: the graph has no state `{name}`", path.display()))
            .collect();
        let mut states = BTreeMap::new();
        for (name, ty) in expected {
            match given.get(name) {
                Some(weight) if weight.ty == *ty => drop(states.insert(name.clone(), weight.tensor())),
                Some(weight) => problems.push(format!("{}: `{name}` is {}, not {ty}", path.display(), weight.ty)),
                None => problems.push(format!("{}: `{name}` is missing", path.display())),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { step, skipped, states }),
            false => Err(Error::all(Kind::BadFile, "train.checkpoint", problems)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lite3r_ir::DType;

    use super::*;

    #[test]
    fn what_is_saved_comes_back_with_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        let w = Tensor::wave(DType::F32, &[3, 5], 1);
        let saved = Checkpoint { step: 17, skipped: 2, states: BTreeMap::from([("w".into(), w.clone())]) };
        saved.save(&path).unwrap();
        let expected = BTreeMap::from([("w".to_string(), w.value_type())]);
        assert_eq!(Checkpoint::open(&path, &expected).unwrap(), saved);
        let ty = |text: &str| text.parse::<ValueType>().unwrap();
        let others = BTreeMap::from([("w".to_string(), ty("f32[5,3]")), ("v".to_string(), ty("f32[1]"))]);
        let error = Checkpoint::open(&path, &others).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("train.checkpoint", 2), "{error}");
        let error = Checkpoint::open(&path, &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("has no state `w`"), "{error}");
        weights::safetensors::write(&path, &saved.states, HashMap::new()).unwrap();
        assert!(Checkpoint::open(&path, &expected).unwrap_err().to_string().contains("no checkpoint"));
        std::fs::write(&path, b"not one").unwrap();
        assert_eq!(Checkpoint::open(&path, &expected).unwrap_err().code, "train.checkpoint");
    }
}
