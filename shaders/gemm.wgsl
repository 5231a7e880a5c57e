// C = epilogue(A B), or A Bᵀ: A [M, K], B [K, N] or [N, K], over a batch. A workgroup computes a tile of TILE x TILE,
// a thread blocks of 4 x 4 of it, from slices of K in shared memory; sums are f32.

struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    rank: u32,
    // Neighbours of a row of B that share a scale.
    w_group: u32,
    items: u32,
    pad: u32,
    pad_too: u32,
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

//: TILE
const TILE: u32 = 64u;
//: end

// A slice fills 8 KiB of each side.
const DEPTH = 2048u / TILE;
// Blocks of a slice, across and along K.
const BLOCKS = TILE / 4u;
const STEPS = DEPTH / 4u;

// By place along K, then by block: what stands side by side belongs to four rows of A, or columns of B.
var<workgroup> left: array<vec4<f32>, 512>;
var<workgroup> right: array<vec4<f32>, 512>;

//: scale
// What element `k` of a column of B is multiplied by before it is summed.
fn b_scale(column: u32, k: u32) -> f32 { return 1.0; }
//: end

//: left
// Four neighbours of a row of A, zero outside.
fn left_at(start: u32, row: u32, k: u32) -> vec4<f32> {
    var v = vec4(0.0);
    if row >= sizes.m { return v; }
    for (var j = 0u; j < 4u; j++) {
        if k + j < sizes.k { v[j] = a_at(start + row * sizes.k + k + j); }
    }
    return v;
}
//: end

//: right
// Four neighbours as B lies in memory, zero outside: `line` is a column and `first` a place along K, or the reverse.
fn right_at(start: u32, line: u32, first: u32) -> vec4<f32> {
    var v = vec4(0.0);
    let ends = select(vec2(sizes.k, sizes.n), vec2(sizes.n, sizes.k), TRANSPOSED == 1u);
    if line >= ends.x { return v; }
    for (var j = 0u; j < 4u; j++) {
        if first + j >= ends.y { break; }
        let place = select(vec2(first + j, line), vec2(line, first + j), TRANSPOSED == 1u);
        v[j] = b_at(start + line * ends.y + first + j) * b_scale(place.x, place.y);
    }
    return v;
}
//: end

// Blocks of 4 x 4 of a slice: places along K, four rows or columns side by side.
fn left_block(start: u32, row: u32, k: u32) -> mat4x4<f32> {
    return transpose(mat4x4(left_at(start, row, k), left_at(start, row + 1u, k), left_at(start, row + 2u, k),
        left_at(start, row + 3u, k)));
}

fn right_block(start: u32, column: u32, k: u32) -> mat4x4<f32> {
    if TRANSPOSED == 1u {
        return transpose(mat4x4(right_at(start, column, k), right_at(start, column + 1u, k),
            right_at(start, column + 2u, k), right_at(start, column + 3u, k)));
    }
    return mat4x4(right_at(start, k, column), right_at(start, k + 1u, column), right_at(start, k + 2u, column),
        right_at(start, k + 3u, column));
}

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

// Four neighbours of a row of sums.
fn put_row(item: u32, row: u32, column: u32, sums: vec4<f32>) {
    if row >= sizes.m || column >= sizes.n { return; }
    var v = sums;
    for (var j = 0u; j < 4u; j++) { v[j] = epilogue(v[j], item, row, min(column + j, sizes.n - 1u)); }
    store((item * sizes.m + row) * sizes.n + column, column, v);
}

fn put(item: u32, row: u32, column: u32, sums: mat4x4<f32>) {
    put_row(item, row, column, sums[0]);
    put_row(item, row + 1u, column, sums[1]);
    put_row(item, row + 2u, column, sums[2]);
    put_row(item, row + 3u, column, sums[3]);
}

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

    // Half of the threads fetch of A, half of B, a block each. Eight neighbours take different rows, those after them
    // what lies behind; of a B whose rows lie along N, all neighbours take neighbours.
    let of_left = thread < 128u;
    let fetched = thread % 128u;
    var block = fetched % 8u + fetched / (8u * STEPS) * 8u;
    var step = fetched / 8u % STEPS;
    if !of_left && TRANSPOSED == 0u {
        block = fetched % BLOCKS;
        step = fetched / BLOCKS;
    }
    let to = 4u * step * BLOCKS + block;

    let down = thread / 16u;
    let across = thread % 16u;
    var sums = mat4x4<f32>();
    var sums_right = mat4x4<f32>();
    var sums_below = mat4x4<f32>();
    var sums_beyond = mat4x4<f32>();
    var next: mat4x4<f32>;
    if of_left {
        next = left_block(starts.x, first_m + 4u * block, 4u * step);
    } else {
        next = right_block(starts.y, first_n + 4u * block, 4u * step);
    }
    for (var k = 0u; k < sizes.k; k += DEPTH) {
        if of_left {
            left[to] = next[0];
            left[to + BLOCKS] = next[1];
            left[to + 2u * BLOCKS] = next[2];
            left[to + 3u * BLOCKS] = next[3];
        } else {
            right[to] = next[0];
            right[to + BLOCKS] = next[1];
            right[to + 2u * BLOCKS] = next[2];
            right[to + 3u * BLOCKS] = next[3];
        }
        workgroupBarrier();
        // Of the next slice, while this one is summed.
        let ahead = k + DEPTH + 4u * step;
        if ahead < sizes.k {
            if of_left {
                next = left_block(starts.x, first_m + 4u * block, ahead);
            } else {
                next = right_block(starts.y, first_n + 4u * block, ahead);
            }
        } else {
            next = mat4x4<f32>();
        }
        for (var i = 0u; i < DEPTH; i++) {
            let a = left[i * BLOCKS + down];
            let b = right[i * BLOCKS + across];
            sums = with_outer(sums, a, b);
            if TILE == 128u {
                let a_below = left[i * BLOCKS + 16u + down];
                let b_right = right[i * BLOCKS + 16u + across];
                sums_right = with_outer(sums_right, a, b_right);
                sums_below = with_outer(sums_below, a_below, b);
                sums_beyond = with_outer(sums_beyond, a_below, b_right);
            }
        }
        workgroupBarrier();
    }
    let row = first_m + 4u * down;
    let column = first_n + 4u * across;
    put(item, row, column, sums);
    if TILE == 128u {
        put(item, row, column + 64u, sums_right);
        put(item, row + 64u, column, sums_below);
        put(item, row + 64u, column + 64u, sums_beyond);
    }
}
