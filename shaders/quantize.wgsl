// Codes of e4m3 under scales that neighbours of a row share: a first kernel gives scales, GROUP threads one, by the
// largest magnitude; a second one gives four elements of the result a thread.

struct Sizes {
    // Scales, or words of the result.
    count: u32,
    // Elements of the operand, of a row, and of a row that share a scale; scales of a row, 0 for one of everything.
    elements: u32,
    columns: u32,
    group: u32,
    groups: u32,
    pad: u32,
    pad_too: u32,
    pad_more: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: GROUP
const GROUP: u32 = 256u;
//: end

fn scale_index(at: u32) -> u32 {
    if sizes.groups == 0u { return 0u; }
    return at / sizes.columns * sizes.groups + at % sizes.columns / sizes.group;
}

//: scale
// max(amax / 448, 2^-126).
fn scale_of(most: f32) -> f32 { return max(most / 448.0, bitcast<f32>(0x00800000u)); }
//: end

//: body
var<workgroup> parts: array<f32, 256>;

fn body(at: u32, thread: u32) {
    let result = at / GROUP;
    let first = result % sizes.groups * sizes.group;
    let start = result / sizes.groups * sizes.columns + first;
    let length = min(sizes.group, sizes.columns - first);
    var most = 0.0;
    if result < sizes.count {
        for (var i = thread % GROUP; i < length; i += GROUP) { most = max(most, abs(x_at(start + i))); }
    }
    parts[thread] = most;
    for (var half = GROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread % GROUP < half { parts[thread] = max(parts[thread], parts[thread + half]); }
    }
    if result < sizes.count && thread % GROUP == 0u { y_set(result, scale_of(parts[thread])); }
}
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    body((id.y * count.x + id.x) * 256u + thread, thread);
}
