// C = epilogue(A B), or A Bᵀ: A [M, K], B [K, N] or [N, K], over a batch. A workgroup computes a tile of 64 x 64, a thread
// 4 x 4 of it, from slices of K in shared memory; sums are f32.

struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    rank: u32,
    // Columns of A, and of B, that share a scale.
    x_group: u32,
    w_group: u32,
    items: u32,
    pad: u32,
    // The batch, with the steps of A and B.
    dims: array<vec4<u32>, 2>,
    strides: array<vec4<u32>, 4>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> a: array<u32>;
fn a_at(i: u32) -> f32 { return bitcast<f32>(a[i]); }
@group(0) @binding(1) var<storage, read_write> b: array<u32>;
fn b_at(i: u32) -> f32 { return bitcast<f32>(b[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
fn y_put(i: u32, v: vec4<f32>) { for (var j = 0u; j < 4u; j++) { y[4u * i + j] = bitcast<u32>(v[j]); } }
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

//: TRANSPOSED
const TRANSPOSED: u32 = 1u;
//: end

const TILE = 64u;
const DEPTH = 16u;

var<workgroup> left: array<f32, 1024>;
var<workgroup> right: array<f32, 1024>;

//: scale
// What element `i` of a row of A, or of B, is multiplied by before it is summed.
fn a_scale(row: u32, i: u32) -> f32 { return 1.0; }
fn b_scale(row: u32, i: u32) -> f32 { return 1.0; }
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
    let tiles_n = (sizes.n + TILE - 1u) / TILE;
    let tiles = tiles_n * ((sizes.m + TILE - 1u) / TILE);
    let tile = id.y * count.x + id.x;
    let item = tile / tiles;
    if item >= sizes.items { return; }
    let first_m = tile % tiles / tiles_n * TILE;
    let first_n = tile % tiles_n * TILE;
    var starts = vec2(0u);
    var rest = item;
    for (var d = sizes.rank; d > 0u; d--) {
        let i = d - 1u;
        let size = sizes.dims[i / 4u][i % 4u];
        starts += rest % size * vec2(sizes.strides[i / 4u][i % 4u], sizes.strides[2u + i / 4u][i % 4u]);
        rest /= size;
    }
    let down = thread / 16u * 4u;
    let across = thread % 16u * 4u;
    var sums: array<vec4<f32>, 4>;
    for (var first_k = 0u; first_k < sizes.k; first_k += DEPTH) {
        for (var e = thread; e < TILE * DEPTH; e += 256u) {
            let row = first_m + e / DEPTH;
            let i = first_k + e % DEPTH;
            var value = 0.0;
            if row < sizes.m && i < sizes.k { value = a_at(starts.x + row * sizes.k + i) * a_scale(row, i); }
            left[e % DEPTH * TILE + e / DEPTH] = value;
        }
        for (var e = thread; e < TILE * DEPTH; e += 256u) {
            // Neighbouring threads read neighbours.
            let place = select(vec2(e % TILE, e / TILE), vec2(e / DEPTH, e % DEPTH), TRANSPOSED == 1u);
            let column = first_n + place.x;
            let i = first_k + place.y;
            var value = 0.0;
            if column < sizes.n && i < sizes.k {
                let at = select(i * sizes.n + column, column * sizes.k + i, TRANSPOSED == 1u);
                value = b_at(starts.y + at) * b_scale(column, i);
            }
            right[place.y * TILE + place.x] = value;
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let at = i * TILE + across;
            let v = vec4(right[at], right[at + 1u], right[at + 2u], right[at + 3u]);
            for (var r = 0u; r < 4u; r++) { sums[r] = fma(vec4(left[i * TILE + down + r]), v, sums[r]); }
        }
        workgroupBarrier();
    }
    let column = first_n + across;
    if column >= sizes.n { return; }
    for (var r = 0u; r < 4u; r++) {
        let row = first_m + down + r;
        if row >= sizes.m { return; }
        var v = sums[r];
        for (var j = 0u; j < 4u; j++) { v[j] = epilogue(v[j], item, row, min(column + j, sizes.n - 1u)); }
        store((item * sizes.m + row) * sizes.n + column, column, v);
    }
}
