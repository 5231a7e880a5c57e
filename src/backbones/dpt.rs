//! The dense head: four token taps become images of several resolutions, which are fused from coarse to fine.
//!
//! Law: Ranftl et al., "Vision Transformers for Dense Prediction", 2021. VGGT and DA3 differ in one sign of life: the
//! skip of a residual unit is relu(x) in VGGT and x in DA3. DA3 fuses the same four levels a second time for rays.

use lite3r_ir::{Value, ops::Add};

use super::scope::{Built, Kernel, POINTWISE, SAME_3X3, Scope, join};

/// Sizes and habits of a dense head.
#[derive(Clone, Debug)]
pub(super) struct Dpt {
    /// Channels of the fusion stages.
    pub(super) features: usize,
    /// Channels of the four levels.
    pub(super) channels: [usize; 4],
    /// Logits a pixel.
    pub(super) outputs: usize,
    /// Whether the skip of a residual unit is relu(x).
    pub(super) relu_skip: bool,
    /// Rows and columns of patches.
    pub(super) grid: (usize, usize),
    /// Rows and columns of pixels.
    pub(super) image: (usize, usize),
}

impl Dpt {
    /// The four levels from taps [S, hw, 2C], finest first, each [S, features, ·, ·].
    pub(super) fn levels(&self, s: &mut Scope<'_>, module: &str, taps: &[Value; 4]) -> Built<[Value; 4]> {
        let mut levels = *taps;
        for (i, level) in levels.iter_mut().enumerate() {
            let normed = s.layer_norm(&join(module, "norm"), taps[i], 1e-5)?;
            let shape = s.shape(normed);
            let planes = s.transpose(normed, &[0, 2, 1])?;
            let (rows, columns) = self.grid;
            let image = s.reshape(planes, [shape[0].clone(), shape[2].clone(), rows.into(), columns.into()])?;
            let x = s.conv(&join(module, format!("projects.{i}")), image, self.channels[i], POINTWISE)?;
            let x = self.add_plane(s, x)?;
            let resize = join(module, format!("resize_layers.{i}"));
            let halve = Kernel { side: 3, stride: 2, pad: 1, bias: true };
            let x = match i {
                0 => s.upsample(&resize, x, 4)?,
                1 => s.upsample(&resize, x, 2)?,
                2 => x,
                _ => s.conv(&resize, x, self.channels[i], halve)?,
            };
            let lateral = join(module, format!("scratch.layer{}_rn", i + 1));
            *level = s.conv(&lateral, x, self.features, Kernel { bias: false, ..SAME_3X3 })?;
        }
        Ok(levels)
    }

    /// The fused levels [S, features, 8·rows, 8·columns]; `suffix` names the chain.
    pub(super) fn fuse(&self, s: &mut Scope<'_>, module: &str, levels: &[Value; 4], suffix: &str) -> Built {
        let mut x = levels[3];
        for level in (1..=4usize).rev() {
            let module = join(module, format!("scratch.refinenet{level}{suffix}"));
            if level < 4 {
                let lateral = self.residual_unit(s, &join(&module, "resConfUnit1"), levels[level - 1])?;
                s.at(&module);
                x = s.op(Add {}, &[x, lateral])?;
            }
            x = self.residual_unit(s, &join(&module, "resConfUnit2"), x)?;
            let (rows, columns) = s.size(levels[level.saturating_sub(2)]);
            s.at(&module);
            x = s.bilinear(x, if level > 1 { (rows, columns) } else { (2 * rows, 2 * columns) })?;
            x = s.conv(&join(&module, "out_conv"), x, self.features, POINTWISE)?;
        }
        Ok(x)
    }

    /// Logits [S, H, W, outputs] from the fused levels.
    pub(super) fn logits(&self, s: &mut Scope<'_>, module: &str, fused: Value) -> Built {
        let x = s.conv(&join(module, "scratch.output_conv1"), fused, self.features / 2, SAME_3X3)?;
        let x = s.bilinear(x, self.image)?;
        let x = self.add_plane(s, x)?;
        let x = s.conv(&join(module, "scratch.output_conv2.0"), x, 32, SAME_3X3)?;
        let x = s.relu(x)?;
        let x = s.conv(&join(module, "scratch.output_conv2.2"), x, self.outputs, POINTWISE)?;
        s.transpose(x, &[0, 2, 3, 1])
    }

    /// Logits of rays [S, 8·rows, 8·columns, 7] from levels that were fused for them.
    pub(super) fn rays(&self, s: &mut Scope<'_>, module: &str, fused: Value) -> Built {
        let mut x = fused;
        for i in 0..5 {
            let outputs = if i % 2 == 0 { self.features / 2 } else { self.features };
            x = s.conv(&join(module, format!("scratch.output_conv1_aux.3.{i}")), x, outputs, SAME_3X3)?;
        }
        let x = self.add_plane(s, x)?;
        let last = join(module, "scratch.output_conv2_aux.3");
        let x = s.conv(&join(&last, 0), x, 32, SAME_3X3)?;
        let x = s.transpose(x, &[0, 2, 3, 1])?;
        let x = s.layer_norm(&join(&last, 2), x, 1e-5)?;
        let x = s.transpose(x, &[0, 3, 1, 2])?;
        let x = s.relu(x)?;
        let x = s.conv(&join(&last, 5), x, 7, POINTWISE)?;
        s.transpose(x, &[0, 2, 3, 1])
    }

    /// Two convolutions with ReLU before each, and a skip.
    fn residual_unit(&self, s: &mut Scope<'_>, module: &str, x: Value) -> Built {
        s.at(module);
        let active = s.relu(x)?;
        let y = s.conv(&join(module, "conv1"), active, self.features, SAME_3X3)?;
        let y = s.relu(y)?;
        let y = s.conv(&join(module, "conv2"), y, self.features, SAME_3X3)?;
        s.op(Add {}, &[y, if self.relu_skip { active } else { x }])
    }

    /// x [S, C, h, w] plus a tenth of the sine-cosine image of the view plane, whose corners lie on the unit circle.
    ///
    /// The channel quarters are sin x, cos x, sin y, cos y over the frequencies 100^(−4k/C). A channel depends on the
    /// column or on the row alone, so a strip for each is added, with zeros for the other's channels, in place of a
    /// full image.
    fn add_plane(&self, s: &mut Scope<'_>, x: Value) -> Built {
        let (c, (rows, columns)) = (s.channels(x), s.size(x));
        let (height, width) = (self.image.0 as f64, self.image.1 as f64);
        let diagonal = height.hypot(width);
        let strip = |n: usize, span: f64, first: bool| -> Vec<f64> {
            let place = |i: usize| span * (2.0 * i as f64 + 1.0 - n as f64) / n as f64;
            let channel = |k: usize| {
                let (half, quarter) = (k / (c / 2) == usize::from(!first), k / (c / 4) % 2);
                let omega = 100f64.powf(-((k % (c / 4)) as f64) / (c / 4) as f64);
                (0..n).map(move |i| match (half, quarter) {
                    (false, _) => 0.0,
                    (true, 0) => 0.1 * (place(i) * omega).sin(),
                    (true, _) => 0.1 * (place(i) * omega).cos(),
                })
            };
            (0..c).flat_map(channel).collect()
        };
        let across = s.constant(&[1, c, 1, columns], &strip(columns, width / diagonal, true))?;
        let down = s.constant(&[1, c, rows, 1], &strip(rows, height / diagonal, false))?;
        let x = s.op(Add {}, &[x, across])?;
        s.op(Add {}, &[x, down])
    }
}
