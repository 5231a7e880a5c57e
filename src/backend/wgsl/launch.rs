//! What a step does on a GPU, before buffers are known: shaders with workgroups, bindings and sizes.
//!
//! **Architecture Invariant:** lowering is a pure function of operation and types. It runs when a plan is made, to learn
//! which shaders it carries, and again when it is loaded, to bind buffers; both times with the same answer.

use lite3r_ir::{DType, Dim, ValueType};

use super::shader::Shader;
use crate::backend::Request;

/// A step on the device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    /// In order; a later one reads what an earlier one wrote.
    pub launches: Vec<Launch>,
    /// Bytes of scratch memory that they share.
    pub scratch: usize,
}

impl Lowered {
    /// Followed by another, which begins when this has ended: both may use the same scratch memory.
    pub fn then(&mut self, next: Self) {
        self.launches.extend(next.launches);
        self.scratch = self.scratch.max(next.scratch);
    }
}

impl From<Launch> for Lowered {
    fn from(launch: Launch) -> Self {
        Self { launches: vec![launch], scratch: 0 }
    }
}

/// One dispatch of one shader.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// What runs: the entry point `main` of this.
    pub shader: Shader,
    /// Workgroups; no dispatch if one of them is 0.
    pub groups: [u32; 3],
    /// `@binding(0)` and on, all of them storage. The sizes follow.
    pub bindings: Vec<Binding>,
    /// The words of the shader's `Sizes`, in order.
    pub sizes: Vec<u32>,
}

/// Invocations of a workgroup of shaders that loop over elements.
pub const THREADS: usize = 256;

/// Workgroups along one dimension that every adapter offers.
const MOST_GROUPS: usize = 65535;

/// So many workgroups in a row, folded where they exceed what one dimension may have: shaders count
/// `id.y * count.x + id.x` and leave what is beyond.
pub fn folded(groups: usize) -> Result<[u32; 3], String> {
    let rows = groups.div_ceil(MOST_GROUPS).max(1);
    match rows {
        1..=MOST_GROUPS => Ok([groups.div_ceil(rows) as u32, if groups == 0 { 0 } else { rows as u32 }, 1]),
        _ => Err(format!("takes up to {MOST_GROUPS}² workgroups, not {groups}")),
    }
}

/// Bytes of a buffer that a shader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Relative to what.
    pub base: Base,
    /// From this byte on; a multiple of 256.
    pub offset: u64,
    /// How many; rounded up to whole words.
    pub bytes: u64,
}

/// A value and where it lies.
pub type Placed = (ValueType, Binding);

impl Binding {
    /// A whole operand or result.
    pub fn whole(base: Base, ty: &ValueType) -> Self {
        Self { base, offset: 0, bytes: ty.bytes().unwrap_or(0) as u64 }
    }

    /// All operands, then all results.
    pub fn all(request: &Request<'_>) -> Vec<Self> {
        let operands = request.operands.iter().enumerate().map(|(i, ty)| Self::whole(Base::Operand(i), ty));
        let results = request.results.iter().enumerate().map(|(i, ty)| Self::whole(Base::Result(i), ty));
        operands.chain(results).collect()
    }

    /// An operand.
    pub fn operand(request: &Request<'_>, index: usize) -> Self {
        Self::whole(Base::Operand(index), &request.operands[index])
    }

    /// A result.
    pub fn result(request: &Request<'_>, index: usize) -> Self {
        Self::whole(Base::Result(index), &request.results[index])
    }

    /// Scratch memory.
    pub fn scratch(offset: usize, bytes: usize) -> Self {
        Self { base: Base::Scratch, offset: offset as u64, bytes: bytes as u64 }
    }
}

/// Scratch memory that is handed out from the start.
#[derive(Default)]
pub struct Scratch(pub usize);

impl Scratch {
    /// Room for a value in f32.
    pub fn take(&mut self, shape: &[usize]) -> Placed {
        self.take_as(DType::F32, shape)
    }

    /// Room for a value.
    pub fn take_as(&mut self, dtype: DType, shape: &[usize]) -> Placed {
        let at = self.0;
        let bytes = dtype.size() * shape.iter().product::<usize>();
        self.0 = (at + bytes).next_multiple_of(256);
        (ValueType::new(dtype, shape.iter().map(|n| Dim::from(*n))), Binding::scratch(at, bytes))
    }
}

/// What an offset is relative to. All are aligned to 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// An operand of the step.
    Operand(usize),
    /// A result of the step.
    Result(usize),
    /// The scratch memory of the step.
    Scratch,
}

/// A number as a word of `Sizes`. Errors: it has more than 32 bits.
pub fn word(size: usize) -> Result<u32, String> {
    u32::try_from(size).map_err(|_| format!("takes sizes below 2^32, not {size}"))
}
