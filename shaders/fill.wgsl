// A pattern of two words, over and over.

struct Sizes { count: u32, even: u32, odd: u32, pad: u32 }

//: tensors
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@group(0) @binding(1) var<uniform> sizes: Sizes;
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let i = (id.y * count.x + id.x) * 256u + thread;
    if i < sizes.count { y[i] = select(sizes.odd, sizes.even, i % 2u == 0u); }
}
