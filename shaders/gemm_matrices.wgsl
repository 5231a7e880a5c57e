enable f16;
enable wgpu_cooperative_matrix;
// C = epilogue(A B), or A Bᵀ, by cooperative matrices: A [M, K] of f16, B [K, N] or [N, K], over a batch; rows of A
// may be pixels of a convolution that are gathered while they are read. A workgroup of four subgroups computes a tile
// of TILE_M x TILE_N, each a quarter of it, from slices of K in shared memory: one is multiplied while the next is
// fetched. Sums are f32. Rows of A, B and C are whole fours. The splices from `declared` on are written out for the
// size of a tile.

struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    rank: u32,
    items: u32,
    // Of a convolution: channels, and what its pixels see.
    channels: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_y: u32,
    pad_x: u32,
    // The batch, with the steps of A and B.
    dims: array<vec4<u32>, 2>,
    strides: array<vec4<u32>, 4>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> a: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read_write> b: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f16>>;
fn y_put(i: u32, v: vec4<f32>) { y[i] = vec4<f16>(v); }
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

//: TRANSPOSED
const TRANSPOSED: u32 = 1u;
//: end
//: TILE_M
const TILE_M: u32 = 64u;
//: end
//: TILE_N
const TILE_N: u32 = 64u;
//: end
//: KERNEL_W
const KERNEL_W: u32 = 1u;
//: end

// What a slice takes of K.
const DEPTH = 32u;
// Fours of a row of a slice: eight of them, and two that keep rows from sharing banks; of a B by rows along N, its own.
const STEP_A = DEPTH / 4u + 2u;
const STEP_B = select(TILE_N / 4u + 2u, DEPTH / 4u + 2u, TRANSPOSED == 1u);
const SLICE_A = TILE_M * STEP_A;
const SLICE_B = select(DEPTH, TILE_N, TRANSPOSED == 1u) * STEP_B;

var<workgroup> left: array<vec4<f16>, 2u * SLICE_A>;
var<workgroup> right: array<vec4<f16>, 2u * SLICE_B>;
// Of each subgroup, sums of 16 rows and 32 columns.
var<workgroup> staged: array<vec4<f32>, 512>;

//: left
// Where a row of A begins, if there is such a row.
struct Row { at: u32, is: bool }

fn row_at(start: u32, row: u32) -> Row { return Row(start + row * sizes.k, row < sizes.m); }

// Four neighbours of a row of A, zero outside.
fn left_at(row: Row, k: u32) -> vec4<f16> {
    if !row.is || k >= sizes.k { return vec4<f16>(); }
    return a[(row.at + k) / 4u];
}
//: end

// Four neighbours as B lies in memory, zero outside: of line `line + down`, which is a column of B where slices run
// along lines, and a place along K where they run across.
fn right_at(start: u32, line: u32, first: u32, k: u32, down: u32) -> vec4<f16> {
    let ends = select(vec2(sizes.k, sizes.n), vec2(sizes.n, sizes.k), TRANSPOSED == 1u);
    let place = vec2(line + down, first) + select(vec2(k, 0u), vec2(0u, k), TRANSPOSED == 1u);
    if place.x >= ends.x || place.y >= ends.y { return vec4<f16>(); }
    return b[(start + place.x * ends.y + place.y) / 4u];
}

//: epilogue
// Of four neighbours of a row of sums.
fn epilogue(sums: vec4<f32>, item: u32, row: u32, column: u32) -> vec4<f32> { return sums; }
//: end

//: store
// The four from element `at` of C on.
fn store(at: u32, v: vec4<f32>) { y_put(at / 4u, v); }
//: end

// What a thread writes of 16 rows and 32 columns of sums of its subgroup.
fn put(item: u32, subgroup: u32, lane: u32, row: u32, column: u32) {
    for (var i = 0u; i < 4u; i++) {
        let down = row + lane / 8u + 4u * i;
        let across = column + lane % 8u * 4u;
        if down >= sizes.m || across >= sizes.n { continue; }
        let sums = staged[subgroup * 128u + (lane / 8u + 4u * i) * 8u + lane % 8u];
        store((item * sizes.m + down) * sizes.n + across, epilogue(sums, item, down, across));
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let tiles_n = (sizes.n + TILE_N - 1u) / TILE_N;
    let tiles_m = (sizes.m + TILE_M - 1u) / TILE_M;
    let all = id.y * count.x + id.x;
    let item = all / (tiles_n * tiles_m);
    if item >= sizes.items { return; }
    // Sixteen tiles down, then across: those that run together share rows and columns.
    let tile = all % (tiles_n * tiles_m);
    let band = tile / (16u * tiles_n);
    let rows = min(16u, tiles_m - 16u * band);
    let within = tile - band * 16u * tiles_n;
    let first_m = (16u * band + within % rows) * TILE_M;
    let first_n = within / rows * TILE_N;
    var starts = vec2(0u);
    var rest = item;
    for (var d = sizes.rank; d > 0u; d--) {
        let i = d - 1u;
        let size = sizes.dims[i / 4u][i % 4u];
        starts += rest % size * vec2(sizes.strides[i / 4u][i % 4u], sizes.strides[2u + i / 4u][i % 4u]);
        rest /= size;
    }
    let subgroup = thread / 32u;
    let lane = thread % 32u;
    // The quarter of the tile that a subgroup computes.
    let quarter_m = subgroup / 2u * (TILE_M / 2u);
    let quarter_n = subgroup % 2u * (TILE_N / 2u);
    // Eight neighbours fetch a row of a slice of A; of B, a row of it.
    let across_a = thread % 8u * 4u;
    let down_a = thread / 8u;
    let row_b = select(TILE_N / 4u, 8u, TRANSPOSED == 1u);
    let across_b = thread % row_b;
    let down_b = thread / row_b;
    let down_b_step = 128u / row_b;
    let line_b = select(0u, first_n, TRANSPOSED == 1u) + down_b;
    let first_b = select(first_n, 0u, TRANSPOSED == 1u) + 4u * across_b;

//: declared
    let row_0 = row_at(starts.x, first_m + down_a);
    let row_1 = row_at(starts.x, first_m + down_a + 16u);
    let row_2 = row_at(starts.x, first_m + down_a + 32u);
    let row_3 = row_at(starts.x, first_m + down_a + 48u);
    var a_0: vec4<f16>;
    var a_1: vec4<f16>;
    var a_2: vec4<f16>;
    var a_3: vec4<f16>;
    var b_0: vec4<f16>;
    var b_1: vec4<f16>;
    var b_2: vec4<f16>;
    var b_3: vec4<f16>;
    var sum_0_0: coop_mat16x16<f32, C>;
    var sum_0_1: coop_mat16x16<f32, C>;
    var sum_1_0: coop_mat16x16<f32, C>;
    var sum_1_1: coop_mat16x16<f32, C>;
//: end
    // Of the slice that begins at `ahead`.
    var ahead = 0u;
//: fetch
    a_0 = left_at(row_0, ahead + across_a);
    a_1 = left_at(row_1, ahead + across_a);
    a_2 = left_at(row_2, ahead + across_a);
    a_3 = left_at(row_3, ahead + across_a);
    b_0 = right_at(starts.y, line_b, first_b, ahead, 0u);
    b_1 = right_at(starts.y, line_b, first_b, ahead, down_b_step);
    b_2 = right_at(starts.y, line_b, first_b, ahead, 2u * down_b_step);
    b_3 = right_at(starts.y, line_b, first_b, ahead, 3u * down_b_step);
//: end
    for (var k = 0u; k < sizes.k; k += DEPTH) {
        let slice = k / DEPTH % 2u;
        let to_a = slice * SLICE_A + down_a * STEP_A + across_a / 4u;
        let to_b = slice * SLICE_B + down_b * STEP_B + across_b;
//: stow
        left[to_a] = a_0;
        left[to_a + 16u * STEP_A] = a_1;
        left[to_a + 32u * STEP_A] = a_2;
        left[to_a + 48u * STEP_A] = a_3;
        right[to_b] = b_0;
        right[to_b + down_b_step * STEP_B] = b_1;
        right[to_b + 2u * down_b_step * STEP_B] = b_2;
        right[to_b + 3u * down_b_step * STEP_B] = b_3;
//: end
        // Whoever writes to the other slice next is past the products of this one's predecessor.
        workgroupBarrier();
        ahead = k + DEPTH;
//: fetch
        a_0 = left_at(row_0, ahead + across_a);
        a_1 = left_at(row_1, ahead + across_a);
        a_2 = left_at(row_2, ahead + across_a);
        a_3 = left_at(row_3, ahead + across_a);
        b_0 = right_at(starts.y, line_b, first_b, ahead, 0u);
        b_1 = right_at(starts.y, line_b, first_b, ahead, down_b_step);
        b_2 = right_at(starts.y, line_b, first_b, ahead, 2u * down_b_step);
        b_3 = right_at(starts.y, line_b, first_b, ahead, 3u * down_b_step);
//: end
        for (var part = 0u; part < DEPTH / 4u; part += 4u) {
            let from_a = slice * SLICE_A + quarter_m * STEP_A + part;
            let from_b = slice * SLICE_B
                + select(4u * part * STEP_B + quarter_n / 4u, quarter_n * STEP_B + part, TRANSPOSED == 1u);
//: multiply
            let l_0 = coopLoadT<coop_mat16x16<f16, A>>(&left[from_a], STEP_A);
            let l_1 = coopLoadT<coop_mat16x16<f16, A>>(&left[from_a + 16u * STEP_A], STEP_A);
            let r_0 = coopLoad<coop_mat16x16<f16, B>>(&right[from_b], STEP_B);
            sum_0_0 = coopMultiplyAdd(l_0, r_0, sum_0_0);
            sum_1_0 = coopMultiplyAdd(l_1, r_0, sum_1_0);
            let r_1 = coopLoad<coop_mat16x16<f16, B>>(&right[from_b + 16u * STEP_B], STEP_B);
            sum_0_1 = coopMultiplyAdd(l_0, r_1, sum_0_1);
            sum_1_1 = coopMultiplyAdd(l_1, r_1, sum_1_1);
//: end
        }
    }
    let row = first_m + quarter_m;
    let column = first_n + quarter_n;
//: put
    coopStoreT(sum_0_0, &staged[subgroup * 128u], 8u);
    coopStoreT(sum_0_1, &staged[subgroup * 128u + 4u], 8u);
    workgroupBarrier();
    put(item, subgroup, lane, row, column);
    workgroupBarrier();
    coopStoreT(sum_1_0, &staged[subgroup * 128u], 8u);
    coopStoreT(sum_1_1, &staged[subgroup * 128u + 4u], 8u);
    workgroupBarrier();
    put(item, subgroup, lane, row + 16u, column);
//: end
}
