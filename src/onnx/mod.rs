//! ONNX files into graphs and weights.
//!
//! ```no_run
//! let imported = lite3r::onnx::import("model.onnx".as_ref())?;
//! println!("{} nodes, {} weights", imported.graph.len(), imported.weights.len());
//! # Ok::<(), lite3r::Error>(())
//! ```
//!
//! Opsets 13 to 24, from the TorchScript exporter and from `torch.export`. [`import_with`] works in this order:
//!
//! 1. `load`: the file is mapped and decoded without copying tensors; structure is checked (one producer a value, no
//!    cycle, nothing missing).
//! 2. `check`: every node that an output needs is looked up; all operators without a converter are reported at once.
//! 3. `tensor`, `external`: initialisers become weights by reference, identical ones stored once. External data must
//!    lie in the folder of the model.
//! 4. `ops`: nodes are converted in order, one family of operators a file.
//!
//! **What is known is computed at once** (`known`). Shape arithmetic runs on the host with dimensions as polynomials,
//! so `Shape`, `Gather`, `Concat`, `Mul` … leave no operation behind and a `Reshape` gets its dimensions as
//! attributes, bound or not. A symbol that flows into data becomes a [`lite3r_ir::ops::Range`]. Only where a shape
//! itself cannot be written as a polynomial must symbols be bound before the import: [`ImportOptions::bindings`].
//!
//! **Params and constants.** Floating-point initialisers become `Param` nodes that keep dotted module names; a
//! nameless one (`onnx::MatMul_31`, `val_7`) is called after the module of its first reader:
//! `aggregator.frame_blocks.0.attn.qkv.weight_t` (`_t`: stored [in, out]). Integers, f64 tables, scalars and nameless
//! tables of up to 16 elements are `Constant` nodes. The origin of every operation is the name of its ONNX node, with
//! the module path in front where the file knows one.
//!
//! Errors have kind `Unsupported` (`onnx.unsupported_op`, `onnx.unsupported_opset`, `onnx.unsupported`), `BadFile`
//! (`onnx.decode`, `onnx.structure`, `onnx.tensor`, `onnx.external_data`, `onnx.node`) or `Usage`
//! (`onnx.unknown_output`, `onnx.unknown_symbol`), and list every problem of their kind.

mod build;
mod check;
mod dims;
mod external;
mod known;
mod load;
mod names;
mod node;
mod ops;
mod proto;
mod tensor;
#[cfg(test)]
mod tests;

use std::path::Path;

use lite3r_ir::{Bindings, Graph};

use crate::{Result, weights::Weights};

pub use ops::supported;

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Values for symbols of the inputs, put in before anything is converted.
    pub bindings: Bindings,
    /// Only these outputs, and what they need; empty: all.
    pub outputs: Vec<String>,
    /// Missing files of external data are no error: their tensors become params without weights, as for graphs
    /// published without weights. [`crate::weights::random`] can fill them.
    pub allow_missing_data: bool,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The computation; symbols that were not bound are still in it.
    pub graph: Graph,
    /// The weights of its params, by reference into the mapped files.
    pub weights: Weights,
    /// Who wrote the file: `pytorch 2.9.1`.
    pub producer: String,
    /// The version of the default operator set.
    pub opset: i64,
    /// How many tensors had no data; zero unless [`ImportOptions::allow_missing_data`].
    pub missing: usize,
}

/// Imports a model with its symbols unbound. Errors: see the module.
pub fn import(path: &Path) -> Result<Imported> {
    import_with(path, &ImportOptions::default())
}

/// Imports a model. Errors: see the module.
pub fn import_with(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let model = load::load(path, &options.outputs)?;
    check::check(&model)?;
    build::build(&model, options)
}
