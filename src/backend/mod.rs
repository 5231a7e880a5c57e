//! What a backend is: a [`Target`] at compile time, a [`Device`] at run time.
//!
//! **Architecture Invariant:** a target is pure data about kernels and works without the hardware; a device sees plans,
//! never graphs. Selection happens before any weight is converted or kernel compiled, and reports every gap at once.

pub mod cpu;

use lite3r_ir::{DType, Op, ValueType};

/// One operation on concrete types, as a target is asked about it. Shapes are static.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What is to be computed.
    pub op: &'a Op,
    /// The types of the operands.
    pub operands: &'a [ValueType],
    /// The types of the results.
    pub results: &'a [ValueType],
}

/// The kernel that a target takes for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The row of the target's table: `linear.f32`.
    pub kernel: &'static str,
    /// Bytes of scratch memory that one call needs.
    pub scratch: usize,
}

/// Why no kernel of a target takes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The row that came nearest, if the operation has any.
    pub nearest: Option<&'static str>,
    /// The clause of that row that refused.
    pub clause: String,
}

/// The compile side of a backend.
pub trait Target {
    /// As `--target` and plan headers write it: `cpu`, `cuda:sm_90a`, `wgsl`.
    fn name(&self) -> &'static str;

    /// The kernel for a request, or why there is none.
    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap>;

    /// (operation, element types) pairs for the coverage table: every row of the kernel table.
    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)>;
}
