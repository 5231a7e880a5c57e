//! NumPy files as tensors: `.npy`, and `.npz` archives of them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    path::Path,
};

use half::f16;
use lite3r_ir::{DType, Tensor};
use npyz::{
    NpyFile, Order, TypeChar, WriterBuilder,
    npz::{NpzArchive, NpzWriter},
};

use crate::{Error, Result, atomic};

/// Reads an array. Errors: `file.io`, `npy.array` for element types that tensors do not have.
pub fn read(path: &Path) -> Result<Tensor> {
    let file = File::open(path).map_err(|e| Error::io(path, "cannot be opened", &e))?;
    let array = NpyFile::new(BufReader::new(file)).map_err(|e| Error::io(path, "is not a .npy file", &e))?;
    tensor(array).map_err(|problem| Error::bad_file("npy.array", format!("{}: {problem}", path.display())))
}

/// Reads every array of an archive, by name. Errors as in [`read`], every array that cannot be read.
pub fn read_archive(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut archive = NpzArchive::open(path).map_err(|e| Error::io(path, "is not a .npz file", &e))?;
    let names: Vec<String> = archive.array_names().map(str::to_string).collect();
    let (mut tensors, mut problems) = (BTreeMap::new(), Vec::new());
    for name in names {
        let array = archive.by_name(&name).map_err(|e| e.to_string());
        match array.and_then(|a| tensor(a.ok_or("is gone")?)) {
            Ok(tensor) => drop(tensors.insert(name, tensor)),
            Err(problem) => problems.push(format!("{}: `{name}`: {problem}", path.display())),
        }
    }
    if problems.is_empty() { Ok(tensors) } else { Err(Error::all(crate::Kind::BadFile, "npy.array", problems)) }
}

/// Writes an archive of arrays. bf16 and 8-bit floats, which NumPy lacks, are
/// written as f32.
pub fn write_archive(out: impl Write + Seek, tensors: &BTreeMap<String, Tensor>) -> io::Result<()> {
    let mut archive = NpzWriter::new(out);
    for (name, tensor) in tensors {
        let shape: Vec<u64> = tensor.shape().iter().map(|d| *d as u64).collect();
        macro_rules! put {
            ($ty:ty, $values:expr) => {{
                let options = archive.array::<$ty>(name, Default::default())?.default_dtype();
                let mut writer = options.shape(&shape).begin_nd()?;
                writer.extend($values)?;
                writer.finish()?;
            }};
        }
        match tensor.dtype() {
            DType::F64 => put!(f64, tensor.to_f64()),
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => put!(f32, tensor.to_f32()),
            DType::I64 => put!(i64, tensor.to_i64()),
            DType::I32 => put!(i32, tensor.to_i64().into_iter().map(|v| v as i32)),
            DType::U8 => put!(u8, tensor.bytes().iter().copied()),
            DType::Bool => put!(bool, tensor.bytes().iter().map(|b| *b != 0)),
        }
    }
    archive.zip_writer().finish().map_err(io::Error::other)?.flush()
}

/// Writes an archive to a file under a temporary name and renames it. Errors: `file.io`.
pub fn save_archive(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    atomic::write(path, |out| write_archive(out, tensors))
}

fn tensor(array: NpyFile<impl Read>) -> std::result::Result<Tensor, String> {
    if array.order() == Order::Fortran && array.shape().len() > 1 {
        return Err("is stored column by column; save it with np.ascontiguousarray".into());
    }
    let shape: Vec<usize> = array.shape().iter().map(|d| *d as usize).collect();
    let npyz::DType::Plain(ty) = array.dtype() else { return Err("has a structured element type".into()) };
    let fail = |e: io::Error| e.to_string();
    match (ty.type_char(), ty.size_field()) {
        (TypeChar::Float, 8) => Ok(Tensor::from_f64(DType::F64, &shape, &array.into_vec().map_err(fail)?)),
        (TypeChar::Float, 4) => Ok(Tensor::from_f32(&shape, array.into_vec::<f32>().map_err(fail)?)),
        (TypeChar::Float, 2) => {
            let values: Vec<f64> = array.into_vec::<f16>().map_err(fail)?.into_iter().map(f64::from).collect();
            Ok(Tensor::from_f64(DType::F16, &shape, &values))
        }
        (TypeChar::Int, 8) => Ok(Tensor::from_i64(DType::I64, &shape, &array.into_vec().map_err(fail)?)),
        (TypeChar::Int, 4) => {
            let values: Vec<i64> = array.into_vec::<i32>().map_err(fail)?.into_iter().map(i64::from).collect();
            Ok(Tensor::from_i64(DType::I32, &shape, &values))
        }
        (TypeChar::Uint, 1) => {
            Tensor::from_bytes(DType::U8, &shape, &array.into_vec::<u8>().map_err(fail)?).ok_or("is cut short".into())
        }
        (TypeChar::Bool, 1) => {
            let values: Vec<i64> = array.into_vec::<bool>().map_err(fail)?.into_iter().map(i64::from).collect();
            Ok(Tensor::from_i64(DType::Bool, &shape, &values))
        }
        _ => Err(format!("has element type {}, which tensors do not have", array.dtype().descr())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_round_trip_in_every_type() {
        let dtypes = [DType::F64, DType::F32, DType::I64, DType::I32, DType::U8, DType::Bool];
        let tensor = |t: &DType| Tensor::from_i64(*t, &[2, 3], &[0, 1, 2, 3, 4, 5]);
        let mut tensors: BTreeMap<String, Tensor> = dtypes.iter().map(|t| (t.name().into(), tensor(t))).collect();
        tensors.insert("scalar".into(), Tensor::scalar(DType::F32, 1.5));
        tensors.insert("empty".into(), Tensor::from_f32(&[0, 4], vec![]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.npz");
        save_archive(&path, &tensors).unwrap();
        assert_eq!(read_archive(&path).unwrap(), tensors);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_array_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        std::fs::write(&path, b"not an array").unwrap();
        for error in [read(&path).unwrap_err(), read_archive(&path).unwrap_err(), read(folder.path()).unwrap_err()] {
            assert_eq!(error.kind, crate::Kind::BadFile);
        }
        std::fs::write(folder.path().join("all.npz"), b"").unwrap();
        let error = save_archive(&folder.path().join("all.npz/inside.npz"), &BTreeMap::new()).unwrap_err();
        assert_eq!(error.code, "file.io");
    }
}
