// Codes of 8 bits as numbers of 16, four at a time.

struct Sizes {
    fours: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_four(i: u32) -> vec4<f32> {
    let v = x[i];
    return vec4(float_of_e4m3(v & 0xffu), float_of_e4m3((v >> 8u) & 0xffu), float_of_e4m3((v >> 16u) & 0xffu),
        float_of_e4m3(v >> 24u));
}
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_put(i: u32, v: vec4<f32>) { y[2u * i] = f16_of_pair(v.xy); y[2u * i + 1u] = f16_of_pair(v.zw); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let i = 256u * (id.y * count.x + id.x) + thread;
    if i < sizes.fours { y_put(i, x_four(i)); }
}
