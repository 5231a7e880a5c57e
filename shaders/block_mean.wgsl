// The mean token of every block: x [heads, n, d] as y [heads, blocks, d]. A thread sums four neighbouring columns of a block.

struct Sizes {
    // Of four columns.
    parts: u32,
    blocks: u32,
    n: u32,
    d: u32,
    cut: Cut,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_part(i: u32, there: u32) -> vec4<f32> {
    var part = vec4(0.0);
    for (var j = 0u; j < min(there, 4u); j++) { part[j] = bitcast<f32>(x[i + j]); }
    return part;
}
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.d; j++) { y_set(at + j, v[j]); }
}
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = (id.y * count.x + id.x) * 256u + thread;
    if at >= sizes.parts { return; }
    let across = (sizes.d + 3u) / 4u;
    let column = at % across * 4u;
    let row = at / across;
    let head = row / sizes.blocks;
    let range = tokens_of(sizes.cut, row % sizes.blocks);
    let start = head * sizes.n * sizes.d + column;
    let there = sizes.d - column;
    // Four tokens at once are on their way.
    var sums = mat4x4<f32>();
    var token = range.x;
    for (; token + 4u <= range.y; token += 4u) {
        let first = start + token * sizes.d;
        sums += mat4x4(x_part(first, there), x_part(first + sizes.d, there), x_part(first + 2u * sizes.d, there),
            x_part(first + 3u * sizes.d, there));
    }
    for (; token < range.y; token++) { sums[0] += x_part(start + token * sizes.d, there); }
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    store(row * sizes.d + column, column, sum / f32(range.y - range.x));
}
