// The mean token of every block: x [heads, n, d] as y [heads, blocks, d]. A thread sums a column of a block.

struct Sizes {
    elements: u32,
    blocks: u32,
    n: u32,
    d: u32,
    cut: Cut,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = (id.y * count.x + id.x) * 256u + thread;
    if at >= sizes.elements { return; }
    let column = at % sizes.d;
    let block = at / sizes.d % sizes.blocks;
    let head = at / sizes.d / sizes.blocks;
    let range = tokens_of(sizes.cut, block);
    var sum = 0.0;
    for (var token = range.x; token < range.y; token++) { sum += x_at((head * sizes.n + token) * sizes.d + column); }
    y_set(at, sum / f32(range.y - range.x));
}
