//! The tensor IR of lite3r: graph, operations, text form, patterns and passes.
//!
//! No device, no ONNX, no file format is known here.

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

pub use builder::Builder;
pub use dim::{Bindings, Dim};
pub use graph::{Graph, NodeId, OpError, Value};
pub use ops::Op;
pub use patch::Patch;
pub use tensor::Tensor;
pub use types::{DType, ValueType};
pub use verify::verify;
