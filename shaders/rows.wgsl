// Softmax and normalisation along one axis: a workgroup, or a subgroup, takes a row, of `length` elements `step` apart, and
// passes over it as often as it must; sums are taken in the same order every time.

struct Sizes {
    rows: u32,
    length: u32,
    // Elements from one of a row to the next, which is also how many rows lie beside one another.
    step: u32,
    eps: f32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

// Where a row begins.
fn start_of(at: u32) -> u32 { return at / sizes.step * sizes.length * sizes.step + at % sizes.step; }

//: row
// Softmax.
fn row(start: u32, lane: u32, lanes: u32) {
    var most = bitcast<f32>(0xff800000u);
    for (var i = lane; i < sizes.length; i += lanes) { most = max(most, x_at(start + i * sizes.step)); }
    most = most_of(most, lane);
    var sum = 0.0;
    for (var i = lane; i < sizes.length; i += lanes) { sum += exponential(x_at(start + i * sizes.step) - most); }
    sum = sum_of(sum, lane);
    for (var i = lane; i < sizes.length; i += lanes) {
        let at = start + i * sizes.step;
        y_set(at, exponential(x_at(at) - most) / sum);
    }
}
//: end

//: lanes
// A workgroup has a row.
fn sum_of(value: f32, thread: u32) -> f32 { return sum_of_workgroup(value, thread); }
fn most_of(value: f32, thread: u32) -> f32 { return most_of_workgroup(value, thread); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = id.y * count.x + id.x;
    if at >= sizes.rows { return; }
    row(start_of(at), thread, 256u);
}
//: end
