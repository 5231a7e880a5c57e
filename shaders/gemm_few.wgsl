// C = epilogue(A Bᵀ) for few rows of A: reading B once is what such a product takes. A workgroup computes eight columns
// of all rows; 32 threads share a column, each with every 32nd four of K, and their sums are added up in shared memory.
// A [M, K] and B [N, K] in whole fours.

struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    // Neighbours of a row of B that share a scale.
    w_group: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> a: array<vec4<u32>>;
fn a_four(i: u32) -> vec4<f32> { return bitcast<vec4<f32>>(a[i]); }
@group(0) @binding(1) var<storage, read_write> b: array<vec4<u32>>;
fn b_four(i: u32) -> vec4<f32> { return bitcast<vec4<f32>>(b[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
fn y_put(i: u32, v: vec4<f32>) { for (var j = 0u; j < 4u; j++) { y[4u * i + j] = bitcast<u32>(v[j]); } }
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

//: ROWS
// As many as A has.
const ROWS: u32 = 8u;
//: end

// By row, then by column, then by thread of the column.
var<workgroup> partial: array<f32, ROWS * 256u>;

//: scale
// What element `k` of a column of B is multiplied by before it is summed.
fn b_scale(column: u32, k: u32) -> f32 { return 1.0; }
//: end

//: epilogue
// Of the sum in this row and column of item `item`.
fn epilogue(sum: f32, item: u32, row: u32, column: u32) -> f32 { return sum; }
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.n; j++) { y_set(at + j, v[j]); }
}
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let first = 8u * (id.y * count.x + id.x);
    let lane = thread % 32u;
    let column = first + thread / 32u;
    var sums: array<vec4<f32>, ROWS>;
    if column < sizes.n {
        for (var k = 4u * lane; k < sizes.k; k += 128u) {
            let weights = b_four((column * sizes.k + k) / 4u) * b_scale(column, k);
            for (var row = 0u; row < ROWS; row++) {
                sums[row] = fma(a_four((row * sizes.k + k) / 4u), weights, sums[row]);
            }
        }
    }
    for (var row = 0u; row < ROWS; row++) {
        let sum = sums[row];
        partial[row * 256u + thread] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    for (var half = 16u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            for (var row = 0u; row < ROWS; row++) {
                partial[row * 256u + thread] += partial[row * 256u + thread + half];
            }
        }
    }
    workgroupBarrier();
    // Two fours of every row.
    let row = thread / 2u;
    let four = first + 4u * (thread % 2u);
    if row >= ROWS || four >= sizes.n { return; }
    var v = vec4(0.0);
    for (var j = 0u; j < 4u; j++) {
        let sum = partial[row * 256u + (four - first + j) * 32u];
        v[j] = epilogue(sum, 0u, row, min(four + j, sizes.n - 1u));
    }
    store(row * sizes.n + four, four, v);
}
