//! `points.glb`: binary glTF 2.0 with the points and the cameras' frusta.
//!
//! Coordinates are those of every other file. glTF's viewers hold y up and look along -z, so the root node turns the
//! world by half a turn about x.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use gltf_json::{
    Accessor, Asset, Buffer, Index, Mesh, Node, Root, Scene,
    accessor::{ComponentType, GenericComponentType, Type},
    buffer::{Stride, Target, View},
    mesh::{Mode, Primitive, Semantic},
    validation::{Checked::Valid, USize64},
};

use super::{Point, Reconstruction};
use crate::{Error, Result, atomic};

/// Colour of the frusta.
const FRUSTUM_COLOR: [u8; 3] = [230, 97, 40];
/// Depth of a frustum as a part of the median depth of all views.
const FRUSTUM_DEPTH: f64 = 0.08;
/// Twelve bytes of position, four of colour (glTF aligns to four).
const VERTEX: usize = 16;
/// Apex and corner of every edge of a frustum.
const EDGES: [[usize; 2]; 8] = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]];

pub(super) fn write(reconstruction: &Reconstruction, points: &[Point], folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("points.glb");
    atomic::write_bytes(&path, &glb_bytes(reconstruction, points)?)?;
    Ok(vec![path])
}

/// A binary glTF file with `points` and the frusta of the cameras of `reconstruction`.
///
/// # Errors
/// `recon.glb` if the file would exceed the format's 4 GiB.
pub fn glb_bytes(reconstruction: &Reconstruction, points: &[Point]) -> Result<Vec<u8>> {
    let mut document = Document::default();
    document.add("points", Mode::Points, points.iter().map(|p| (p.position, p.color)));
    let depth = FRUSTUM_DEPTH * reconstruction.median_depth().unwrap_or(1.0);
    let frusta = reconstruction.views.iter().flat_map(|view| {
        let corners = view.frustum(depth);
        EDGES.into_iter().flatten().map(move |i| (corners[i].map(|v| v as f32), FRUSTUM_COLOR))
    });
    document.add("cameras", Mode::Lines, frusta);
    document.finish()
}

#[derive(Default)]
struct Document {
    root: Root,
    data: Vec<u8>,
}

impl Document {
    /// A node of its own with one primitive; nothing if there are no vertices, which glTF cannot say.
    fn add(&mut self, name: &str, mode: Mode, vertices: impl Iterator<Item = ([f32; 3], [u8; 3])>) {
        let start = self.data.len();
        let (mut low, mut high) = ([f32::INFINITY; 3], [f32::NEG_INFINITY; 3]);
        for (position, [r, g, b]) in vertices {
            for (axis, v) in position.into_iter().enumerate() {
                (low[axis], high[axis]) = (low[axis].min(v), high[axis].max(v));
                self.data.extend(v.to_le_bytes());
            }
            self.data.extend([linear(r), linear(g), linear(b), 255]);
        }
        let length = self.data.len() - start;
        if length == 0 {
            return;
        }
        let view = self.root.push(View {
            buffer: Index::new(0),
            byte_length: USize64::from(length),
            byte_offset: Some(USize64::from(start)),
            byte_stride: Some(Stride(VERTEX)),
            name: None,
            target: Some(Valid(Target::ArrayBuffer)),
            extensions: None,
            extras: Default::default(),
        });
        let accessor = |offset: usize, component, type_, bounds: Option<[[f32; 3]; 2]>| Accessor {
            buffer_view: Some(view),
            byte_offset: Some(USize64::from(offset)),
            count: USize64::from(length / VERTEX),
            component_type: Valid(GenericComponentType(component)),
            extensions: None,
            extras: Default::default(),
            type_: Valid(type_),
            min: bounds.map(|b| gltf_json::Value::from(b[0].to_vec())),
            max: bounds.map(|b| gltf_json::Value::from(b[1].to_vec())),
            name: None,
            normalized: matches!(component, ComponentType::U8),
            sparse: None,
        };
        let position = self.root.push(accessor(0, ComponentType::F32, Type::Vec3, Some([low, high])));
        let color = self.root.push(accessor(12, ComponentType::U8, Type::Vec4, None));
        let attributes = BTreeMap::from([(Valid(Semantic::Positions), position), (Valid(Semantic::Colors(0)), color)]);
        let primitive = Primitive {
            attributes,
            extensions: None,
            extras: Default::default(),
            indices: None,
            material: None,
            mode: Valid(mode),
            targets: None,
        };
        let mesh = self.root.push(Mesh {
            extensions: None,
            extras: Default::default(),
            name: Some(name.into()),
            primitives: vec![primitive],
            weights: None,
        });
        self.root.push(Node { mesh: Some(mesh), name: Some(name.into()), ..Default::default() });
    }

    /// Header, JSON chunk (padded with spaces), binary chunk (padded with zeros).
    fn finish(mut self) -> Result<Vec<u8>> {
        let fail = |problem: String| Error::bad_file("recon.glb", format!("points.glb: {problem}"));
        let children = (0..self.root.nodes.len() as u32).map(Index::new).collect();
        let world = self.root.push(Node {
            children: Some(children),
            // Column by column: y and z change sign.
            matrix: Some([1., 0., 0., 0., 0., -1., 0., 0., 0., 0., -1., 0., 0., 0., 0., 1.]),
            name: Some("world".into()),
            ..Default::default()
        });
        let scene =
            self.root.push(Scene { extensions: None, extras: Default::default(), name: None, nodes: vec![world] });
        self.root.scene = Some(scene);
        self.root.asset = Asset { generator: Some("lite3r".into()), ..Default::default() };
        self.root.push(Buffer {
            byte_length: USize64::from(self.data.len()),
            name: None,
            uri: None,
            extensions: None,
            extras: Default::default(),
        });
        let mut json = gltf_json::serialize::to_vec(&self.root).map_err(|e| fail(e.to_string()))?;
        json.resize(json.len().next_multiple_of(4), b' ');
        // Every vertex has a multiple of four bytes, so the binary chunk needs no padding.
        let total = 12 + 8 + json.len() + 8 + self.data.len();
        let total = u32::try_from(total).map_err(|_| fail("more than 4 GiB".into()))?;
        let mut out = Vec::with_capacity(total as usize);
        out.extend(b"glTF");
        for word in [2, total, json.len() as u32] {
            out.extend(word.to_le_bytes());
        }
        out.extend(b"JSON");
        out.extend(json);
        out.extend((self.data.len() as u32).to_le_bytes());
        out.extend(b"BIN\0");
        out.extend(self.data);
        Ok(out)
    }
}

/// Vertex colours of glTF are linear; pictures are sRGB.
fn linear(v: u8) -> u8 {
    let v = v as f64 / 255.0;
    let linear = if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) };
    (linear * 255.0).round() as u8
}
