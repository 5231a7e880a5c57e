// Attention through a feature map (Katharopoulos et al. 2020): phi(q) H / (phi(q) z + 1e-6) with H = sum phi(k)ᵀ v and
// z = sum phi(k)ᵀ over all keys, of features. Three launches: `sum_states`, H and z over a stretch of keys; `join_states`,
// their sums over stretches, H times wᵀ where there is a projection; `apply_states`, rows of the result. A state is
// H [d, e], then z [d]. A workgroup computes a tile of 64 x 64, a thread 4 x 4 of it, from 16 terms at a time in shared
// memory; where it joins, a row of a state.

struct Sizes {
    // Batch times heads, and heads an image.
    heads: u32,
    image_heads: u32,
    n: u32,
    m: u32,
    d: u32,
    e: u32,
    stretches: u32,
    stretch: u32,
    // Elements from image to image, head to head, token to token.
    y_rows: vec4<u32>,
}

//: tensors
// Features of keys, states, or features of queries.
@group(0) @binding(0) var<storage, read_write> a: array<u32>;
fn a_one(i: u32) -> f32 { return bitcast<f32>(a[i]); }
fn a_part(i: u32, there: u32) -> vec4<f32> {
    var part = vec4(0.0);
    for (var j = 0u; j < min(there, 4u); j++) { part[j] = a_one(i + j); }
    return part;
}
// Values, the projection, or states.
@group(0) @binding(1) var<storage, read_write> b: array<u32>;
fn b_one(i: u32) -> f32 { return bitcast<f32>(b[i]); }
fn b_part(i: u32, there: u32) -> vec4<f32> {
    var part = vec4(0.0);
    for (var j = 0u; j < min(there, 4u); j++) { part[j] = b_one(i + j); }
    return part;
}
fn residual_at(i: u32) -> f32 { return 0.0; }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

const SUM = 0u;
const JOIN = 1u;
const APPLY = 2u;

//: STEP
const STEP: u32 = 0u;
//: end

//: PROJECTED
const PROJECTED: u32 = 0u;
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.e; j++) { y_set(at + j, v[j]); }
}
//: end

// Of 16 terms, 64 rows and 64 columns in vectors of four.
var<workgroup> left: array<vec4<f32>, 256>;
var<workgroup> right: array<vec4<f32>, 256>;
// A column of its own: what a denominator sums.
var<workgroup> middle: array<f32, 16>;

// Adds 16 terms.
fn accumulate(sums: ptr<function, array<vec4<f32>, 4>>, total: ptr<function, vec4<f32>>, thread: u32) {
    for (var i = 0u; i < 16u; i++) {
        let rows = left[i * 16u + thread / 16u];
        let columns = right[i * 16u + thread % 16u];
        *total = fma(rows, vec4(middle[i]), *total);
        for (var r = 0u; r < 4u; r++) { (*sums)[r] = fma(vec4(rows[r]), columns, (*sums)[r]); }
    }
}

// `tile` counts columns, rows, then stretches of heads.
fn sum_states(tile: u32, thread: u32) {
    let across = (sizes.e + 63u) / 64u;
    let down = (sizes.d + 63u) / 64u;
    let state = tile / across / down;
    if state >= sizes.heads * sizes.stretches { return; }
    let head = state / sizes.stretches;
    let first = vec2(tile / across % down, tile % across) * 64u;
    let end = min(sizes.m, (state % sizes.stretches + 1u) * sizes.stretch);
    var sums: array<vec4<f32>, 4>;
    var total = vec4(0.0);
    let own = vec2(thread / 16u, thread % 16u * 4u);
    for (var start = state % sizes.stretches * sizes.stretch; start < end; start += 16u) {
        let token = head * sizes.m + start + own.x;
        var rows = vec4(0.0);
        var columns = vec4(0.0);
        let at = first + own.y;
        if start + own.x < end {
            if at.x < sizes.d { rows = a_part(token * sizes.d + at.x, sizes.d - at.x); }
            if at.y < sizes.e { columns = b_part(token * sizes.e + at.y, sizes.e - at.y); }
        }
        left[thread] = rows;
        right[thread] = columns;
        if thread < 16u { middle[thread] = 1.0; }
        workgroupBarrier();
        accumulate(&sums, &total, thread);
        workgroupBarrier();
    }
    let to = state * sizes.d * (sizes.e + 1u);
    for (var r = 0u; r < 4u; r++) {
        let row = first.x + thread / 16u * 4u + r;
        if row >= sizes.d { break; }
        for (var j = 0u; j < 4u; j++) {
            let column = first.y + own.y + j;
            if column < sizes.e { y_set(to + row * sizes.e + column, sums[r][j]); }
        }
        if first.y + thread % 16u == 0u { y_set(to + sizes.d * sizes.e + row, total[r]); }
    }
}

// Of a row of H over all stretches.
var<workgroup> joined: array<f32, 256>;

// `tile` counts rows of H, then heads.
fn join_states(tile: u32, thread: u32) {
    let head = tile / sizes.d;
    let row = tile % sizes.d;
    if head >= sizes.heads { return; }
    let size = sizes.d * (sizes.e + 1u);
    // Column e is that of z.
    for (var column = thread; column <= sizes.e; column += 256u) {
        let at = select(row * sizes.e + column, sizes.d * sizes.e + row, column == sizes.e);
        var sum = 0.0;
        for (var i = 0u; i < sizes.stretches; i++) { sum += a_one((head * sizes.stretches + i) * size + at); }
        if PROJECTED == 0u || column == sizes.e { y_set(head * size + at, sum); } else { joined[column] = sum; }
    }
    if PROJECTED == 0u { return; }
    workgroupBarrier();
    if thread >= sizes.e { return; }
    var sum = 0.0;
    for (var i = 0u; i < sizes.e; i++) { sum = fma(joined[i], b_one(thread * sizes.e + i), sum); }
    y_set(head * size + row * sizes.e + thread, sum);
}

// `tile` counts columns, rows, then heads.
fn apply_states(tile: u32, thread: u32) {
    let across = (sizes.e + 63u) / 64u;
    let down = (sizes.n + 63u) / 64u;
    let head = tile / across / down;
    if head >= sizes.heads { return; }
    let first = vec2(tile / across % down, tile % across) * 64u;
    let state = head * sizes.d * (sizes.e + 1u);
    var sums: array<vec4<f32>, 4>;
    var total = vec4(0.0);
    for (var start = 0u; start < sizes.d; start += 16u) {
        // Four terms of a token, which `left` has by terms.
        let token = first.x + thread / 4u;
        let term = start + thread % 4u * 4u;
        var terms = vec4(0.0);
        if token < sizes.n && term < sizes.d {
            terms = a_part((head * sizes.n + token) * sizes.d + term, sizes.d - term);
        }
        for (var j = 0u; j < 4u; j++) { left[(thread % 4u * 4u + j) * 16u + thread / 16u][thread / 4u % 4u] = terms[j]; }
        let row = start + thread / 16u;
        let column = first.y + thread % 16u * 4u;
        var columns = vec4(0.0);
        if row < sizes.d && column < sizes.e { columns = b_part(state + row * sizes.e + column, sizes.e - column); }
        right[thread] = columns;
        if thread < 16u {
            middle[thread] = 0.0;
            if start + thread < sizes.d { middle[thread] = b_one(state + sizes.d * sizes.e + start + thread); }
        }
        workgroupBarrier();
        accumulate(&sums, &total, thread);
        workgroupBarrier();
    }
    let column = first.y + thread % 16u * 4u;
    if column >= sizes.e { return; }
    let rows = sizes.y_rows;
    for (var r = 0u; r < 4u; r++) {
        let token = first.x + thread / 16u * 4u + r;
        if token >= sizes.n { return; }
        let at = head / sizes.image_heads * rows.x + head % sizes.image_heads * rows.y + token * rows.z + column;
        var v = sums[r] / (total[r] + 1e-6);
        for (var j = 0u; j < 4u && column + j < sizes.e; j++) { v[j] += residual_at(at + j); }
        store(at, column, v);
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let tile = id.y * count.x + id.x;
    if STEP == SUM { sum_states(tile, thread); }
    if STEP == JOIN { join_states(tile, thread); }
    if STEP == APPLY { apply_states(tile, thread); }
}
