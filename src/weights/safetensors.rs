//! The safetensors format: a JSON header of names, types and ranges, then the bytes. Read where they lie.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use lite3r_ir::{DType, Tensor, ValueType};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;

use super::{MappedFile, Weight, Weights};
use crate::{Error, Kind, Result, atomic};

/// Opens a `.safetensors` file, or the `.index.json` of several that lie beside it. The weights map the files.
///
/// Errors: `file.io`; `safetensors.header` for a file that is not whole or not consistent; `safetensors.dtype` with
/// every tensor whose element type lite3r does not have; `safetensors.index` for an index that is not one, that names
/// files elsewhere, or that does not fit its files.
pub fn open(path: &Path) -> Result<Weights> {
    if path.extension().is_some_and(|e| e == "json") {
        return open_index(path);
    }
    let mut weights = Weights::default();
    for (name, weight) in open_file(path)? {
        weights.insert(name, weight);
    }
    Ok(weights)
}

fn open_file(path: &Path) -> Result<Vec<(String, Weight)>> {
    let file = Arc::new(MappedFile::open(path)?);
    let damaged = |problem: String| Error::bad_file("safetensors.header", format!("{}: {problem}", path.display()));
    let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| damaged(e.to_string()))?;
    let data = size_of::<u64>() + header;
    let (mut list, mut unknown) = (Vec::new(), Vec::new());
    for (name, info) in metadata.tensors() {
        let Some(dtype) = element(info.dtype) else {
            unknown.push(format!("{}: `{name}` has elements of type {:?}", path.display(), info.dtype));
            continue;
        };
        let ty = ValueType::new(dtype, info.shape.iter().copied());
        let (start, end) = info.data_offsets;
        let weight = Weight::mapped(ty, file.clone(), data + start..data + end);
        list.push((name.clone(), weight.ok_or_else(|| damaged(format!("`{name}` does not fit its range")))?));
    }
    match unknown.is_empty() {
        true => Ok(list),
        false => Err(Error::all(Kind::Unsupported, "safetensors.dtype", unknown)),
    }
}

/// Writes tensors of f32 or f16 with notes. Errors: `file.io`, `safetensors.write` for elements of other types.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, notes: HashMap<String, String>) -> Result<()> {
    let bad = |problem: String| Error::usage("safetensors.write", format!("{}: {problem}", path.display()));
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            other => return Err(bad(format!("`{name}` has elements of type {}", other.name()))),
        };
        let view = TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
        views.push((name, view.map_err(|e| bad(format!("`{name}`: {e}")))?));
    }
    let bytes = safetensors::serialize(views, Some(notes)).map_err(|e| bad(e.to_string()))?;
    atomic::write_bytes(path, &bytes)
}

/// What a checkpoint in several files writes beside them.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<Weights> {
    let refuse = |problems: Vec<String>| Error::all(Kind::BadFile, "safetensors.index", problems);
    let file = MappedFile::open(path)?;
    let index: Index = serde_json::from_slice(file.bytes())
        .map_err(|e| refuse(vec![format!("{}: not an index of weights: {e}", path.display())]))?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let outside = |name: &str| name.contains(['/', '\\']) || name == ".." || name.is_empty();
    let strange: Vec<String> = shards
        .iter()
        .filter(|name| outside(name))
        .map(|name| format!("{}: `{name}` is not the name of a file beside it", path.display()))
        .collect();
    if !strange.is_empty() {
        return Err(refuse(strange));
    }
    let mut shard_of: BTreeMap<String, (&str, Weight)> = BTreeMap::new();
    for shard in shards {
        for (name, weight) in open_file(&path.with_file_name(shard))? {
            shard_of.insert(name, (shard, weight));
        }
    }
    let (mut weights, mut problems) = (Weights::default(), Vec::new());
    for (name, shard) in &index.weight_map {
        match shard_of.remove(name) {
            Some((found, weight)) if found == shard => drop(weights.insert(name, weight)),
            _ => problems.push(format!("{}: `{name}` is not in {shard}", path.display())),
        }
    }
    if problems.is_empty() { Ok(weights) } else { Err(refuse(problems)) }
}

fn element(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::tensor::TensorView;

    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name.to_string(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn tensors_are_mapped_with_their_types() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write(
            &path,
            &[
                ("a.weight", Dtype::F32, vec![2, 2], floats(&[1.0, -2.0, 3.0, 4.0])),
                ("a.bias", Dtype::BF16, vec![1], vec![0x80, 0x3f]),
                ("none", Dtype::F32, vec![0, 3], vec![]),
            ],
        );
        let weights = open(&path).unwrap();
        assert_eq!(weights.len(), 3);
        let weight = weights.get("a.weight").unwrap();
        assert_eq!(weight.ty.to_string(), "f32[2,2]");
        assert_eq!(weight.tensor().to_f32(), [1.0, -2.0, 3.0, 4.0]);
        assert!(weight.location().is_some());
        assert_eq!(weights.get("a.bias").unwrap().tensor().to_f32(), [1.0]);
    }

    #[test]
    fn shards_are_joined_by_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write(&at("one.safetensors"), &[("a", Dtype::F32, vec![1], floats(&[1.0]))]);
        write(&at("two.safetensors"), &[("b", Dtype::F32, vec![1], floats(&[2.0]))]);
        let index = at("model.safetensors.index.json");
        fs::write(&index, r#"{"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#).unwrap();
        let weights = open(&index).unwrap();
        assert_eq!(weights.get("b").unwrap().tensor().to_f32(), [2.0]);
        fs::write(&index, r#"{"weight_map":{"a":"two.safetensors","c":"one.safetensors"}}"#).unwrap();
        let error = open(&index).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("safetensors.index", 2));
        fs::write(&index, r#"{"weight_map":{"a":"../one.safetensors"}}"#).unwrap();
        assert!(open(&index).unwrap_err().to_string().contains("not the name of a file beside it"));
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write(&path, &[("a", Dtype::F32, vec![2], floats(&[1.0, 2.0]))]);
        let whole = fs::read(&path).unwrap();
        for length in [0, 4, 8, 20, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(open(&path).unwrap_err().code, "safetensors.header", "{length} bytes");
        }
        let mut long = whole.clone();
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, &long).unwrap();
        assert_eq!(open(&path).unwrap_err().code, "safetensors.header");
        write(&path, &[("a", Dtype::U16, vec![1], vec![0, 0])]);
        assert_eq!(open(&path).unwrap_err().code, "safetensors.dtype");
        assert_eq!(open(&folder.path().join("absent.safetensors")).unwrap_err().code, "file.io");
    }
}
