//! `shaders/movement.wgsl`: operations that move elements without looking at them, by words.

use lite3r_ir::{
    DType, Op, Tensor, ValueType,
    ops::{Pad, shape_rules::strides},
};

use super::{
    Kernel,
    adapter::padded,
    dims,
    elementwise::packed,
    launch::{Base, Binding, Launch, Lowered, Placed, THREADS, folded, word},
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
    Kernel::plain(name, op, &DType::ALL, lower)
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
    let operand = |(i, ty): (usize, &ValueType)| (ty.clone(), Binding::whole(Base::Operand(i), ty));
    let result = |(i, ty): (usize, &ValueType)| (ty.clone(), Binding::whole(Base::Result(i), ty));
    let operands: Vec<Placed> = request.operands.iter().enumerate().map(operand).collect();
    let results: Vec<Placed> = request.results.iter().enumerate().map(result).collect();
    in_windows(request, &operands, &results, u64::MAX)
}

/// As `lower`, for operands and results anywhere, of which a launch sees up to `most` bytes each.
pub fn in_windows(
    request: &Request<'_>,
    operands: &[Placed],
    results: &[Placed],
    most: u64,
) -> Result<Lowered, String> {
    let launches = match request.op {
        Op::Pad(op) => pad(request, op, operands[0].1, results[0].1, most)?,
        _ => {
            let size = request.results[0].dtype.size();
            let mut launches = Vec::new();
            for copy in copies(request)? {
                let (from, to) = (&operands[copy.operand].1, &results[copy.result].1);
                launches.extend(moved(&copy, size, *from, *to, most)?);
            }
            launches
        }
    };
    Ok(Lowered { launches, scratch: 0 })
}

/// The border, then the box within it.
fn pad(request: &Request<'_>, op: &Pad, from: Binding, to: Binding, most: u64) -> Result<Vec<Launch>, String> {
    let (x, y, dtype) = (dims(&request.operands[0])?, dims(&request.results[0])?, request.results[0].dtype);
    let steps = strides(&y);
    let start = op.before.iter().zip(&steps).map(|(n, step)| n * step).sum();
    let inner = Copy::new(&x, (0, 0, &strides(&x)), (0, start, &steps));
    let border = Tensor::from_f64(dtype, &[1], &[op.value]);
    let mut launches = filled(border.bytes(), to, most)?;
    launches.extend(moved(&inner, dtype.size(), from, to, most)?);
    Ok(launches)
}

/// Launches that move a box of elements of `size` bytes and see up to `most` bytes of either side.
pub fn moved(copy: &Copy, size: usize, from: Binding, to: Binding, most: u64) -> Result<Vec<Launch>, String> {
    let words = copy.in_words(size);
    let bytes = if words.is_some() { 4 } else { size };
    let (axes, starts) = words.unwrap_or_else(|| (copy.axes.clone(), copy.starts));
    let mut launches = Vec::new();
    boxes(&axes, starts, bytes, [from, to], most, &mut launches)?;
    Ok(launches)
}

/// The launch of a box, or of its halves where it reaches too far.
fn boxes(
    axes: &[Axis],
    starts: [usize; 2],
    size: usize,
    sides: [Binding; 2],
    most: u64,
    launches: &mut Vec<Launch>,
) -> Result<(), String> {
    let count = axes.iter().map(|a| a.0).product::<usize>();
    if count == 0 {
        return Ok(());
    }
    let (mut seen, mut places) = (sides, starts);
    if sides.iter().any(|side| padded(side.bytes) > most) {
        for (i, side) in sides.iter().enumerate() {
            let reach: usize = axes.iter().map(|(n, steps)| (n - 1) * steps[i] as usize).sum();
            let first = starts[i] * size / 256 * 256;
            let end = (starts[i] + reach + 1) * size;
            seen[i] = Binding { offset: side.offset + first as u64, bytes: (end - first) as u64, ..*side };
            places[i] = starts[i] - first / size;
        }
        if seen.iter().any(|side| padded(side.bytes) > most) {
            let reach = |(n, steps): &Axis| {
                let far = (0..2).filter(|i| padded(seen[*i].bytes) > most).map(|i| (n - 1) * steps[i] as usize);
                far.max().unwrap_or(0)
            };
            let longest = (0..axes.len()).max_by_key(|d| reach(&axes[*d])).filter(|d| reach(&axes[*d]) > 0);
            let d = longest.ok_or_else(|| format!("a shader sees {most} bytes at once: too few to move anything"))?;
            let (mut half, mut rest) = (axes.to_vec(), axes.to_vec());
            half[d].0 /= 2;
            rest[d].0 -= half[d].0;
            let behind = [0, 1].map(|i| starts[i] + half[d].0 * axes[d].1[i] as usize);
            boxes(&half, starts, size, sides, most, launches)?;
            return boxes(&rest, behind, size, sides, most, launches);
        }
    }
    let mut sizes = vec![word(count)?, axes.len() as u32, word(places[0])?, word(places[1])?];
    sizes.extend(packed(axes, 2)?);
    let groups = folded(count.div_ceil(THREADS))?;
    launches.push(Launch { shader: shader(size), groups, bindings: seen.into(), sizes });
    Ok(())
}

/// A tensor full of one element.
fn filled(element: &[u8], to: Binding, most: u64) -> Result<Vec<Launch>, String> {
    let pattern: Vec<u8> = element.iter().copied().cycle().take(8).collect();
    let at_once = (most / 256 * 256).max(256);
    let window = |offset: u64| {
        let bytes = at_once.min(to.bytes - offset);
        let words = bytes.div_ceil(4) as usize;
        let mut sizes: Vec<u32> = vec![word(words)?];
        sizes.extend(pattern.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])));
        sizes.push(0);
        Ok(Launch {
            shader: Shader::new("fill.wgsl", &Tensors::default().words("y").sizes()),
            groups: folded(words.div_ceil(THREADS))?,
            bindings: vec![Binding { offset: to.offset + offset, bytes, ..to }],
            sizes,
        })
    };
    (0..to.bytes).step_by(usize::try_from(at_once).unwrap_or(usize::MAX)).map(window).collect()
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
