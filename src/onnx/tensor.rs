//! Tensors of a file: every storage that the format has, by reference where the bytes lie as they are needed.

use std::sync::Arc;

use lite3r_ir::{DType, Tensor, ValueType};

use super::{
    dims::LARGEST,
    external::{Folder, Trouble},
    proto::{EXTERNAL, TensorProto},
};
use crate::weights::{MappedFile, Weight};

/// The data of a tensor.
pub enum Data {
    /// Here they are.
    Weight(Weight),
    /// The file that should hold them does not exist.
    Missing {
        /// The type that they would have.
        ty: ValueType,
        /// Which file.
        problem: String,
    },
}

/// The element type of that number.
pub fn dtype(number: i32) -> Result<DType, String> {
    Ok(match number {
        1 => DType::F32,
        2 => DType::U8,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        16 => DType::BF16,
        17 => DType::F8E4M3,
        19 => DType::F8E5M2,
        other => {
            let names = [(3, "int8"), (4, "uint16"), (5, "int16"), (8, "string"), (12, "uint32"), (13, "uint64")];
            let name = names.iter().find(|(n, _)| *n == other).map_or("unknown", |(_, name)| name);
            return Err(format!("element type {other} ({name}) is not supported"));
        }
    })
}

/// The type of a tensor; dimensions below zero and sizes that no file can hold are errors.
pub fn value_type(proto: &TensorProto) -> Result<ValueType, String> {
    let dtype = dtype(proto.data_type)?;
    if let Some(d) = proto.dims.iter().find(|d| !(0..=LARGEST).contains(*d)) {
        return Err(format!("a dimension cannot have size {d}"));
    }
    let ty = ValueType::new(dtype, proto.dims.iter().copied());
    match ty.bytes() {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(ty),
        _ => Err(format!("{ty} is larger than any file")),
    }
}

/// The data of a tensor of the model in `file`.
pub fn data(proto: &TensorProto, file: &Arc<MappedFile>, folder: &mut Folder) -> Result<Data, String> {
    let ty = value_type(proto)?;
    let bytes = ty.bytes().ok_or("too large")?;
    if proto.data_location == EXTERNAL {
        return match folder.locate(&proto.external_data, bytes) {
            Ok(at) => Weight::mapped(ty, at.file, at.start..at.end).map(Data::Weight).ok_or_else(|| "misfit".into()),
            Err(Trouble::Missing(problem)) => Ok(Data::Missing { ty, problem }),
            Err(Trouble::Bad(problem)) => Err(problem),
        };
    }
    let Some(raw) = &proto.raw_data else { return typed(proto, &ty).map(|t| Data::Weight(Weight::owned(t))) };
    if raw.len() != bytes {
        return Err(format!("{} bytes of data for {ty}, which has {bytes}", raw.len()));
    }
    // Decoding sliced the mapping, so the position in the file is the distance of the addresses.
    let start = (raw.as_ptr() as usize).wrapping_sub(file.bytes().as_ptr() as usize);
    let weight = match bytes {
        0 => None,
        _ => Weight::mapped(ty.clone(), file.clone(), start..start.saturating_add(bytes)),
    };
    let dims = ty.dims().ok_or("a tensor has a static shape")?;
    let copy = || Tensor::from_bytes(ty.dtype, &dims, raw).map(Weight::owned);
    weight.or_else(copy).map(Data::Weight).ok_or_else(|| "misfit".into())
}

/// Data in the typed fields.
fn typed(proto: &TensorProto, ty: &ValueType) -> Result<Tensor, String> {
    let dims = ty.dims().ok_or("a tensor has a static shape")?;
    let count = ty.elements().ok_or("too large")?;
    let fits = |n: usize| match n == count {
        true => Ok(()),
        false => Err(format!("{n} elements of data for {ty}")),
    };
    match ty.dtype {
        DType::F32 => {
            fits(proto.float_data.len())?;
            Ok(Tensor::from_f32(&dims, proto.float_data.as_slice()))
        }
        DType::F64 => {
            fits(proto.double_data.len())?;
            Ok(Tensor::from_f64(DType::F64, &dims, &proto.double_data))
        }
        DType::I64 => {
            fits(proto.int64_data.len())?;
            Ok(Tensor::from_i64(DType::I64, &dims, &proto.int64_data))
        }
        dtype => {
            // Halves and bytes are stored as the bits of one int32 each.
            fits(proto.int32_data.len())?;
            let bytes: Vec<u8> = match dtype.size() {
                4 => proto.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
                2 => proto.int32_data.iter().flat_map(|v| (*v as u16).to_le_bytes()).collect(),
                _ => proto.int32_data.iter().map(|v| *v as u8).collect(),
            };
            Tensor::from_bytes(dtype, &dims, &bytes).ok_or_else(|| format!("data do not fill {ty}"))
        }
    }
}
