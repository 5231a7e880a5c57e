// One of q, k and v [B, heads, N, D] of a joint projection x [B, N, 3·heads·D]: QK norm, rotary positions, rounded once. A
// workgroup takes 16 heads of tokens, 16 threads each.

struct Sizes {
    // Heads of all tokens.
    rows: u32,
    heads: u32,
    n: u32,
    d: u32,
    // 0 for q, 1 for k, 2 for v.
    part: u32,
    // Columns of half a rotated segment.
    half: u32,
    eps: f32,
    pad: u32,
    // Elements of the tables from image to image, head to head, token to token.
    table: vec4<u32>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
fn g_at(i: u32) -> f32 { return 1.0; }
fn b_at(i: u32) -> f32 { return 0.0; }
// Of a column of a row of the tables.
fn cosine_at(row: u32, column: u32) -> f32 { return 1.0; }
fn sine_at(row: u32, column: u32) -> f32 { return 0.0; }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: NORM
const NORM: u32 = 0u;
//: end

//: ROPE
const ROPE: u32 = 0u;
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.d; j++) { y_set(at + j, v[j]); }
}
//: end

var<workgroup> parts: array<f32, 256>;

// Over the 16 threads of a head.
fn sum_of(value: f32, thread: u32) -> f32 {
    parts[thread] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) { sum += parts[thread / 16u * 16u + i]; }
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let own = (id.y * count.x + id.x) * 16u + thread / 16u;
    // All threads take part in sums; those without a head of their own take the last one.
    let row = min(own, sizes.rows - 1u);
    let lane = thread % 16u;
    let head = row % sizes.heads;
    let token = row / sizes.heads % sizes.n;
    let image = row / sizes.heads / sizes.n;
    let start = ((row / sizes.heads * 3u + sizes.part) * sizes.heads + head) * sizes.d;
    var mean = 0.0;
    var scale = 1.0;
    if NORM == 1u {
        var sum = 0.0;
        for (var i = lane; i < sizes.d; i += 16u) { sum += x_at(start + i); }
        mean = sum_of(sum, thread) / f32(sizes.d);
        var squares = 0.0;
        for (var i = lane; i < sizes.d; i += 16u) {
            let v = x_at(start + i) - mean;
            squares = fma(v, v, squares);
        }
        scale = 1.0 / sqrt(sum_of(squares, thread) / f32(sizes.d) + sizes.eps);
    }
    if own >= sizes.rows { return; }
    let table = image * sizes.table.x + head * sizes.table.y + token * sizes.table.z;
    let to = ((image * sizes.heads + head) * sizes.n + token) * sizes.d;
    for (var column = 4u * lane; column < sizes.d; column += 64u) {
        var four = vec4(0.0);
        for (var j = 0u; j < 4u && column + j < sizes.d; j++) {
            let i = column + j;
            var v = fma((x_at(start + i) - mean) * scale, g_at(i), b_at(i));
            if ROPE == 1u {
                let lower = i % (2u * sizes.half) < sizes.half;
                let partner = select(i - sizes.half, i + sizes.half, lower);
                let other = fma((x_at(start + partner) - mean) * scale, g_at(partner), b_at(partner));
                v = fma(v, cosine_at(table, i), select(other, -other, lower) * sine_at(table, i));
            }
            four[j] = v;
        }
        store(to + column, column, four);
    }
}
