// The feature map of linear attention over rows of d columns: elu + 1, or the softmax. A workgroup takes 16 rows, 16 threads
// each.

struct Sizes { rows: u32, d: u32 }

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: SOFTMAX
const SOFTMAX: u32 = 0u;
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.d; j++) { y_set(at + j, v[j]); }
}
//: end

var<workgroup> parts: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let own = (id.y * count.x + id.x) * 16u + thread / 16u;
    // All threads take part in sums; those without a row of their own take the last one.
    let start = min(own, sizes.rows - 1u) * sizes.d;
    let lane = thread % 16u;
    var most = -3.4e38;
    var sum = 1.0;
    if SOFTMAX == 1u {
        for (var i = lane; i < sizes.d; i += 16u) { most = max(most, x_at(start + i)); }
        parts[thread] = most;
        workgroupBarrier();
        for (var i = 0u; i < 16u; i++) { most = max(most, parts[thread - lane + i]); }
        workgroupBarrier();
        sum = 0.0;
        for (var i = lane; i < sizes.d; i += 16u) { sum += exponential(x_at(start + i) - most); }
        parts[thread] = sum;
        workgroupBarrier();
        sum = 0.0;
        for (var i = 0u; i < 16u; i++) { sum += parts[thread - lane + i]; }
    }
    if own >= sizes.rows { return; }
    for (var column = 4u * lane; column < sizes.d; column += 64u) {
        var four = vec4(0.0);
        for (var j = 0u; j < 4u && column + j < sizes.d; j++) {
            let v = x_at(start + column + j);
            if SOFTMAX == 1u {
                four[j] = exponential(v - most) / sum;
            } else {
                four[j] = select(exponential(v), v + 1.0, v > 0.0);
            }
        }
        store(start + column, column, four);
    }
}
