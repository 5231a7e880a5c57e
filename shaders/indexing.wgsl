// Elements and slices picked or replaced by index, and sequences; elements by words. Negative indices count from the end.
//
// scatter_*: a table has for every slot of x the last update that goes there, found by atomic maximum, which does not
// depend on the order of threads; one more than its number, 0 for none. Then every slot takes its update or stays.

struct Sizes {
    // Threads, then what each body says of its own.
    count: u32,
    per_batch: u32,
    batch: u32,
    shared_tuples: u32,
    // Words of a slice, indices of a tuple, dimensions walked, the indexed axis.
    inner: u32,
    tuple: u32,
    rank: u32,
    start: u32,
    // Sizes and strides, in slices, of the dimensions that a tuple indexes.
    target_sizes: array<vec4<u32>, 2>,
    target_strides: array<vec4<u32>, 2>,
    // A walk over the indices with strides in x.
    dims: array<vec4<u32>, 2>,
    strides: array<vec4<u32>, 2>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> indices: array<u32>;
fn indices_at(i: u32) -> i32 { return bitcast<i32>(indices[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

fn wrapped(index: i32, size: u32) -> u32 { return u32(select(index, index + i32(size), index < 0)); }

fn slot_of(first: u32) -> u32 {
    var slot = 0u;
    for (var k = 0u; k < sizes.tuple; k++) {
        let index = wrapped(indices_at(first + k), sizes.target_sizes[k / 4u][k % 4u]);
        slot += index * sizes.target_strides[k / 4u][k % 4u];
    }
    return slot;
}

fn walked(at: u32) -> u32 {
    var rest = at;
    var place = 0u;
    for (var k = sizes.rank; k > 0u; k--) {
        let d = k - 1u;
        place += rest % sizes.dims[d / 4u][d % 4u] * sizes.strides[d / 4u][d % 4u];
        rest /= sizes.dims[d / 4u][d % 4u];
    }
    return place;
}

//: body
// Row r is the slice of x that its tuple names, within batch r / per_batch.
fn body(at: u32) {
    let row = at / sizes.inner;
    let outer = row / sizes.per_batch;
    let tuple = select(row, row - outer * sizes.per_batch, sizes.shared_tuples == 1u);
    y[at] = x[(outer * sizes.batch + slot_of(tuple * sizes.tuple)) * sizes.inner + at % sizes.inner];
}
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = (id.y * count.x + id.x) * 256u + thread;
    if at < sizes.count { body(at); }
}
