// What the reverse pass of attention reads of a query, in pairs: its logarithm of the sum of exponentials, and the product of
// its rows of the result and of the cotangent of that. A thread takes a query.

struct Sizes {
    queries: u32,
    image_heads: u32,
    n: u32,
    e: u32,
    // Elements from image to image, head to head, token to token; the first.
    rows: vec4<u32>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> o: array<u32>;
fn o_at(i: u32) -> f32 { return bitcast<f32>(o[i]); }
@group(0) @binding(1) var<storage, read_write> g: array<u32>;
fn g_at(i: u32) -> f32 { return bitcast<f32>(g[i]); }
@group(0) @binding(2) var<storage, read_write> lse: array<u32>;
fn lse_at(i: u32) -> f32 { return bitcast<f32>(lse[i]); }
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(4) var<uniform> sizes: Sizes;
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = (id.y * count.x + id.x) * 256u + thread;
    if at >= sizes.queries { return; }
    let row = row_of(sizes.rows, sizes.image_heads, at / sizes.n, at % sizes.n);
    var sum = 0.0;
    for (var i = 0u; i < sizes.e; i++) { sum = fma(o_at(row + i), g_at(row + i), sum); }
    y_set(2u * at, lse_at(at));
    y_set(2u * at + 1u, sum);
}
