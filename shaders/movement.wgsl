// Boxes of words, or of elements narrower than a word, from an operand to a result; a thread moves one.

struct Sizes {
    // How many, dimensions walked, and where the box starts in source and destination.
    count: u32,
    rank: u32,
    from_start: u32,
    to_start: u32,
    dims: array<vec4<u32>, 2>,
    // Strides of these dimensions in the source, then in the destination.
    strides: array<vec4<u32>, 4>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let i = (id.y * count.x + id.x) * 256u + thread;
    if i >= sizes.count { return; }
    var rest = i;
    var places = vec2(sizes.from_start, sizes.to_start);
    for (var k = sizes.rank; k > 0u; k--) {
        let d = k - 1u;
        let size = sizes.dims[d / 4u][d % 4u];
        places += rest % size * vec2(sizes.strides[d / 4u][d % 4u], sizes.strides[2u + d / 4u][d % 4u]);
        rest /= size;
    }
//: body
    y[places.y] = x[places.x];
//: end
}
