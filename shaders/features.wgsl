// The feature map of linear attention over rows of d columns: elu + 1, or the softmax. A workgroup takes 16 rows, 16 threads
// each.

struct Sizes { rows: u32, d: u32 }

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

const LOWEST = -3.4e38;

// Four columns of a row; those behind its end are lower than any other.
fn four_at(start: u32, column: u32) -> vec4<f32> {
    let four = x_part(start + column, sizes.d - column);
    return select(vec4(LOWEST), four, vec4(column) + vec4(0u, 1u, 2u, 3u) < vec4(sizes.d));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let own = (id.y * count.x + id.x) * 16u + thread / 16u;
    // All threads take part in sums; those without a row of their own take the last one.
    let start = min(own, sizes.rows - 1u) * sizes.d;
    let lane = thread % 16u;
    var most = LOWEST;
    var sum = 1.0;
    if SOFTMAX == 1u {
        for (var column = 4u * lane; column < sizes.d; column += 64u) {
            let four = four_at(start, column);
            most = max(most, max(max(four.x, four.y), max(four.z, four.w)));
        }
        parts[thread] = most;
        workgroupBarrier();
        for (var i = 0u; i < 16u; i++) { most = max(most, parts[thread - lane + i]); }
        workgroupBarrier();
        sum = 0.0;
        for (var column = 4u * lane; column < sizes.d; column += 64u) {
            let four = four_at(start, column);
            for (var j = 0u; j < 4u; j++) { sum += exponential(four[j] - most); }
        }
        parts[thread] = sum;
        workgroupBarrier();
        sum = 0.0;
        for (var i = 0u; i < 16u; i++) { sum += parts[thread - lane + i]; }
    }
    if own >= sizes.rows { return; }
    for (var column = 4u * lane; column < sizes.d; column += 64u) {
        let four = four_at(start, column);
        var features = vec4(0.0);
        for (var j = 0u; j < 4u; j++) {
            if SOFTMAX == 1u {
                features[j] = exponential(four[j] - most) / sum;
            } else {
                features[j] = select(exponential(four[j]), four[j] + 1.0, four[j] > 0.0);
            }
        }
        store(start + column, column, features);
    }
}
