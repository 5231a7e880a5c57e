//! The tensor IR of lite3r: graph, operations, text form, patterns and passes.
//!
//! No device, no ONNX, no file format is known here.
//!
//! A [`Graph`] holds operations of a closed set ([`ops`], one file each) on typed values. [`text`] is its written
//! form, [`verify()`] says everything that is wrong with it, [`interpret`] evaluates it exactly and slowly,
//! [`pattern`] finds constructs in it, and [`passes`] change it.
//!
//! **Architecture Invariant:** passes change a graph through [`Patch`] alone: new operations beside the old, then old
//! values shunted to new ones of the same type. Nothing is edited in place, so a pass cannot leave a graph that does
//! not type.
//!
//! **Architecture Invariant:** everything that is true of an operation on any device stands in its own file. There is
//! no string dispatch and no registration: exhaustive matches make the compiler the checklist.

pub mod attr;
pub mod builder;
pub mod dim;
pub mod float8;
pub mod graph;
pub mod interpret;
pub mod ops;
pub mod passes;
pub mod patch;
pub mod pattern;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;
pub mod vjp;

pub use builder::Builder;
pub use dim::{Bindings, Dim};
pub use graph::{Graph, NodeId, OpError, Value};
pub use ops::Op;
pub use patch::Patch;
pub use tensor::Tensor;
pub use types::{DType, ValueType};
pub use verify::verify;
pub use vjp::Vjp;
