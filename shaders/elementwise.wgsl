// Each element of the result from one element of each operand, under broadcasting; a thread computes four of them.

struct Sizes {
    // Groups of four, dimensions walked, and whether operands are walked at all.
    groups: u32,
    rank: u32,
    flat: u32,
    pad: u32,
    dims: array<vec4<u32>, 2>,
    // Of every operand: the strides of these dimensions.
    strides: array<vec4<u32>, 12>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> a: array<u32>;
fn a_at(i: u32) -> f32 { return bitcast<f32>(a[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_put(i: u32, v: vec4<f32>) { for (var j = 0u; j < 4u; j++) { y[4u * i + j] = bitcast<u32>(v[j]); } }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: types
alias Result = vec4<f32>;
//: end

// Where element `at` of the result lies in an operand.
fn place(at: u32, operand: u32) -> u32 {
    if sizes.flat == 1u { return at; }
    var rest = at;
    var index = 0u;
    for (var k = sizes.rank; k > 0u; k--) {
        let d = k - 1u;
        let size = sizes.dims[d / 4u][d % 4u];
        let stride = sizes.strides[operand * 2u + d / 4u][d % 4u];
        index += rest % size * stride;
        rest /= size;
    }
    return index;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let group = (id.y * count.x + id.x) * 256u + thread;
    if group >= sizes.groups { return; }
    var v: Result;
    for (var j = 0u; j < 4u; j++) {
        let at = 4u * group + j;
//: body
        let a = a_at(place(at, 0u));
        v[j] = a;
//: end
    }
    y_put(group, v);
}
