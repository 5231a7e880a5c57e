// Rotary position embedding (Su et al. 2021): in every stretch of `width` columns, y = x cos + rot(x) sin with
// rot(x)[j] = -x[j + width / 2] and rot(x)[j + width / 2] = x[j]. The tables are broadcast. A thread takes four elements.

struct Sizes {
    elements: u32,
    width: u32,
    rank: u32,
    pad: u32,
    // The result, with the strides of the tables.
    dims: array<vec4<u32>, 2>,
    strides: array<vec4<u32>, 2>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> cosines: array<u32>;
fn cosines_at(i: u32) -> f32 { return bitcast<f32>(cosines[i]); }
@group(0) @binding(2) var<storage, read_write> sines: array<u32>;
fn sines_at(i: u32) -> f32 { return bitcast<f32>(sines[i]); }
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
fn y_put(i: u32, v: vec4<f32>) { for (var j = 0u; j < 4u; j++) { y[4u * i + j] = bitcast<u32>(v[j]); } }
@group(0) @binding(4) var<uniform> sizes: Sizes;
//: end

fn place(at: u32) -> u32 {
    var rest = at;
    var index = 0u;
    for (var k = sizes.rank; k > 0u; k--) {
        let d = k - 1u;
        let size = sizes.dims[d / 4u][d % 4u];
        index += rest % size * sizes.strides[d / 4u][d % 4u];
        rest /= size;
    }
    return index;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let group = (id.y * count.x + id.x) * 256u + thread;
    if group >= (sizes.elements + 3u) / 4u { return; }
    var v = vec4(0.0);
    for (var j = 0u; j < 4u && 4u * group + j < sizes.elements; j++) {
        let at = 4u * group + j;
        let table = place(at);
        let half = sizes.width / 2u;
        var other = 0.0;
        if at % sizes.width < half { other = -x_at(at + half); } else { other = x_at(at - half); }
        v[j] = fma(x_at(at), cosines_at(table), other * sines_at(table));
    }
    y_put(group, v);
}
