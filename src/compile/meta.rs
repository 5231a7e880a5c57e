//! What a plan says about its model besides the graph: the family, and the input that takes images.

use std::collections::BTreeMap;

use lite3r_ir::{Graph, NodeId, Op, Tensor};

use super::source::{ArchWeights, Model};
use crate::{
    plan::{Family, ImageInput, Meta},
    recon::graph_normalises,
    weights::Weights,
};

/// Tells the family by the outputs, and the images by the shape [.., views, 3, height, width] of an input.
pub fn of(graph: &Graph, weights: &Weights, model: &Model, producer: Option<&str>) -> Meta {
    let has = |name: &str| graph.outputs().iter().any(|(n, _)| n == name);
    let family = if has("pose_enc") {
        Family::Vggt
    } else if has("extrinsics") && has("intrinsics") {
        Family::Da3
    } else {
        Family::Other
    };
    let normalised = graph_normalises(&triples(graph, weights));
    let images = graph.inputs().iter().find_map(|id| images(graph, *id, family, normalised));
    let mut provenance = BTreeMap::new();
    match model {
        Model::Onnx { path, random_weights } => {
            let file = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            provenance.insert("model".into(), file);
            if let Some(seed) = random_weights {
                provenance.insert("weights".into(), format!("random, seed {seed}"));
            }
        }
        Model::Arch { name, weights, .. } => {
            provenance.insert("model".into(), name.clone());
            let weights = match weights {
                ArchWeights::File(path) => path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into()),
                ArchWeights::Random(seed) => format!("random, seed {seed}"),
            };
            provenance.insert("weights".into(), weights);
        }
    }
    if let Some(producer) = producer {
        provenance.insert("exporter".into(), producer.into());
    }
    Meta { family, images, licences: Vec::new(), provenance }
}

/// Constants and weights of three numbers: one a colour.
fn triples(graph: &Graph, weights: &Weights) -> Vec<Tensor> {
    let of = |id: NodeId| match graph.op(id) {
        Op::Constant(op) if op.value.len() == 3 => Some(op.value.clone()),
        Op::Param(op) if op.ty.elements() == Some(3) => weights.get(&op.name).map(|w| w.tensor()),
        _ => None,
    };
    graph.node_ids().filter_map(of).collect()
}

fn images(graph: &Graph, id: NodeId, family: Family, normalised_in_graph: bool) -> Option<ImageInput> {
    let Op::Input(input) = graph.op(id) else { return None };
    let [.., channels, height, width] = input.ty.shape.as_slice() else { return None };
    if channels.size() != Some(3) || !input.ty.dtype.is_float() {
        return None;
    }
    let size = (height.size()?, width.size()?);
    let preprocess = match family {
        Family::Vggt if size.1 == 518 => "vggt_crop",
        Family::Da3 => "da3_upper_bound_resize",
        _ => "plain_crop",
    };
    Some(ImageInput { name: input.name.clone(), size, normalised_in_graph, preprocess: preprocess.into() })
}
