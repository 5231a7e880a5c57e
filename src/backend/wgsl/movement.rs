//! `shaders/movement.wgsl`: operations that move elements without looking at them, by words.

use lite3r_ir::{
    DType, Op, Tensor,
    ops::{Pad, shape_rules::strides},
};

use super::{
    Features, Kernel, dims,
    elementwise::packed,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
};
use crate::backend::{
    Request,
    gpu::{
        moves::{Copy, copies},
        walk::Axis,
    },
};

const fn row(name: &'static str, op: &'static str) -> Kernel {
    Kernel { name, op, dtypes: &DType::ALL, needs: Features::NONE, lower }
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("reshape.words", "reshape"),
    row("transpose.words", "transpose"),
    row("concat.words", "concat"),
    row("slice.words", "slice"),
    row("split.words", "split"),
    row("expand.words", "expand"),
    row("pad.words", "pad"),
    row("split_heads.words", "split_heads"),
    row("merge_heads.words", "merge_heads"),
];

impl Copy {
    /// In words, elements of `size` bytes; `None` where words hold elements that do not move together.
    fn in_words(&self, size: usize) -> Option<(Vec<Axis>, [usize; 2])> {
        let mut axes = self.axes.clone();
        if size >= 4 {
            let words = size / 4;
            axes.iter_mut().flat_map(|a| &mut a.1).for_each(|step| *step *= words as i64);
            if words > 1 {
                axes.push((words, vec![1, 1]));
            }
            return Some((axes, self.starts.map(|s| s * words)));
        }
        let count = 4 / size;
        let whole = |n: i64| n % count as i64 == 0;
        let ((last, steps), outer) = axes.split_last_mut()?;
        let mut others = outer.iter().flat_map(|a| &a.1).copied().chain(self.starts.map(|s| s as i64));
        if !last.is_multiple_of(count) || steps.iter().any(|s| *s != 1) || !others.all(whole) {
            return None;
        }
        *last /= count;
        outer.iter_mut().flat_map(|a| &mut a.1).for_each(|step| *step /= count as i64);
        Some((axes, self.starts.map(|s| s / count)))
    }
}

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let launches = match request.op {
        Op::Pad(op) => pad(request, op)?,
        _ => {
            let size = request.results[0].dtype.size();
            copies(request)?.iter().map(|copy| launch(request, copy, size)).collect::<Result<_, _>>()?
        }
    };
    Ok(Lowered { launches, scratch: 0 })
}

/// The border, then the box within it.
fn pad(request: &Request<'_>, op: &Pad) -> Result<Vec<Launch>, String> {
    let (x, y, dtype) = (dims(&request.operands[0])?, dims(&request.results[0])?, request.results[0].dtype);
    let to = strides(&y);
    let start = op.before.iter().zip(&to).map(|(n, step)| n * step).sum();
    let inner = Copy::new(&x, (0, 0, &strides(&x)), (0, start, &to));
    let border = Tensor::from_f64(dtype, &[1], &[op.value]);
    Ok(vec![fill(request, border.bytes())?, launch(request, &inner, dtype.size())?])
}

fn launch(request: &Request<'_>, copy: &Copy, size: usize) -> Result<Launch, String> {
    let words = copy.in_words(size);
    let bytes = if words.is_some() { 4 } else { size };
    let (axes, starts) = words.unwrap_or_else(|| (copy.axes.clone(), copy.starts));
    let count = axes.iter().map(|a| a.0).product::<usize>();
    let mut sizes = vec![word(count)?, axes.len() as u32, word(starts[0])?, word(starts[1])?];
    sizes.extend(packed(&axes, 2)?);
    Ok(Launch {
        shader: shader(bytes),
        groups: folded(count.div_ceil(THREADS))?,
        bindings: vec![Binding::operand(request, copy.operand), Binding::result(request, copy.result)],
        sizes,
    })
}

/// The result full of one element.
fn fill(request: &Request<'_>, element: &[u8]) -> Result<Launch, String> {
    let words = request.results[0].bytes().ok_or("needs static shapes")?.div_ceil(4);
    let pattern: Vec<u8> = element.iter().copied().cycle().take(8).collect();
    let mut sizes: Vec<u32> = vec![word(words)?];
    sizes.extend(pattern.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])));
    sizes.push(0);
    Ok(Launch {
        shader: Shader::new("fill.wgsl", &Tensors::default().words("y").sizes()),
        groups: folded(words.div_ceil(THREADS))?,
        bindings: vec![Binding::result(request, 0)],
        sizes,
    })
}

/// That moves elements of `size` bytes.
fn shader(size: usize) -> Shader {
    let access = if size == 4 { "array<u32>" } else { "array<atomic<u32>>" };
    let shader = Shader::new("movement.wgsl", &Tensors::default().words("x").declared("y", access).sizes());
    if size == 4 {
        return shader;
    }
    let (per, bits) = (4 / size, 8 * size);
    let mask = (1u64 << bits) - 1;
    // Threads that write parts of one word do so one after the other.
    shader.splice(
        "body",
        format!(
            "    let element = (x[places.x / {per}u] >> ({bits}u * (places.x % {per}u))) & {mask:#x}u;
    let shift = {bits}u * (places.y % {per}u);
    atomicAnd(&y[places.y / {per}u], ~({mask:#x}u << shift));
    atomicOr(&y[places.y / {per}u], element << shift);"
        ),
    )
}
