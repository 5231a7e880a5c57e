// y = act(x * w + b) + residual over images in planes or pixels, any geometry: for every image and group a product of
// weights [outputs, depth] and columns [depth, pixels] that are gathered while they are read. What lies side by side
// in the result runs across a tile: pixels of planes, or channels of pixels. A workgroup computes a tile of TILE x
// TILE, a thread blocks of 4 x 4 of it, from slices of the depth in shared memory.

struct Sizes {
    // Of one group: output channels, input channels times taps, input channels.
    outputs: u32,
    depth: u32,
    channels: u32,
    groups: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_y: u32,
    pad_x: u32,
    // Images times groups.
    planes: u32,
    pad: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> w: array<u32>;
fn w_at(i: u32) -> f32 { return bitcast<f32>(w[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
fn y_put(i: u32, v: vec4<f32>) { for (var j = 0u; j < 4u; j++) { y[4u * i + j] = bitcast<u32>(v[j]); } }
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

//: KERNEL_H
const KERNEL_H: u32 = 3u;
//: end
//: KERNEL_W
const KERNEL_W: u32 = 3u;
//: end
//: PIXELS
const PIXELS: u32 = 0u;
//: end
//: TILE
const TILE: u32 = 64u;
//: end

// A slice fills 8 KiB of each side.
const DEPTH = 2048u / TILE;
// Blocks of a slice, across and along the depth.
const BLOCKS = TILE / 4u;
const STEPS = DEPTH / 4u;

var<workgroup> left: array<vec4<f32>, 512>;
var<workgroup> right: array<vec4<f32>, 512>;

// Where the image's group begins in x, and the group in w.
struct Part { x: u32, w: u32 }

//: weights
// Four neighbours of an output's weights, zero behind the end.
fn weights_at(part: Part, output: u32, k: u32) -> vec4<f32> {
    var v = vec4(0.0);
    if output >= sizes.outputs { return v; }
    for (var j = 0u; j < 4u; j++) {
        if k + j < sizes.depth { v[j] = w_at(part.w + output * sizes.depth + k + j); }
    }
    return v;
}
//: end

fn pixels() -> u32 { return sizes.out_height * sizes.out_width; }

// The pixel of the image that a pixel of the result sees through a tap; what lies outside is past the ends.
fn seen(pixel: u32, tap: u32) -> vec2<u32> {
    let row = pixel / sizes.out_width * sizes.stride_y + tap / KERNEL_W * sizes.dilation_y - sizes.pad_y;
    let column = pixel % sizes.out_width * sizes.stride_x + tap % KERNEL_W * sizes.dilation_x - sizes.pad_x;
    return vec2(row, column);
}

//: columns
// Four neighbours along the depth of what a pixel of the result sees, zero outside.
fn columns_at(part: Part, pixel: u32, k: u32) -> vec4<f32> {
    var v = vec4(0.0);
    if pixel >= pixels() { return v; }
    for (var j = 0u; j < 4u; j++) {
        if k + j >= sizes.depth { break; }
        let taps = KERNEL_H * KERNEL_W;
        let channel = select((k + j) / taps, (k + j) % sizes.channels, PIXELS == 1u);
        let place = seen(pixel, select((k + j) % taps, (k + j) / sizes.channels, PIXELS == 1u));
        if place.x >= sizes.height || place.y >= sizes.width { continue; }
        let at = place.x * sizes.width + place.y;
        let plane = sizes.height * sizes.width;
        v[j] = x_at(part.x + select(channel * plane + at, at * sizes.channels * sizes.groups + channel, PIXELS == 1u));
    }
    return v;
}
//: end

//: epilogue
// Of the sum for output channel `output` of all groups, the element `at` of the result.
fn epilogue(sum: f32, output: u32, at: u32) -> f32 { return sum; }
//: end

//: store
// Elements of the result from `at` on, `count` of these four.
fn store(at: u32, count: u32, v: vec4<f32>) {
    for (var j = 0u; j < count; j++) { y_set(at + j, v[j]); }
}
//: end

// A block of 4 x 4 of the slice: rows of the tile from `first` on, elements along the depth from k on side by side.
fn block(part: Part, of_weights: bool, first: u32, k: u32) -> mat4x4<f32> {
    if of_weights {
        return mat4x4(weights_at(part, first, k), weights_at(part, first + 1u, k), weights_at(part, first + 2u, k),
            weights_at(part, first + 3u, k));
    }
    return mat4x4(columns_at(part, first, k), columns_at(part, first + 1u, k), columns_at(part, first + 2u, k),
        columns_at(part, first + 3u, k));
}

// Four neighbours of the result in image and group `which`.
fn put_row(which: vec2<u32>, sums: vec4<f32>, down: u32, across: u32) {
    let ends = select(vec2(sizes.outputs, pixels()), vec2(pixels(), sizes.outputs), PIXELS == 1u);
    if down >= ends.x || across >= ends.y { return; }
    let image = which.x * pixels() * sizes.outputs * sizes.groups;
    let output = which.y * sizes.outputs;
    var at = image + (output + down) * pixels() + across;
    if PIXELS == 1u { at = image + down * sizes.outputs * sizes.groups + output + across; }
    let count = min(4u, ends.y - across);
    var v = sums;
    for (var j = 0u; j < count; j++) {
        v[j] = epilogue(v[j], output + select(down, across + j, PIXELS == 1u), at + j);
    }
    store(at, count, v);
}

fn put(which: vec2<u32>, sums: mat4x4<f32>, down: u32, across: u32) {
    put_row(which, sums[0], down, across);
    put_row(which, sums[1], down + 1u, across);
    put_row(which, sums[2], down + 2u, across);
    put_row(which, sums[3], down + 3u, across);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let ends = select(vec2(sizes.outputs, pixels()), vec2(pixels(), sizes.outputs), PIXELS == 1u);
    let tiles = (ends + vec2(TILE - 1u)) / TILE;
    let tile = id.y * count.x + id.x;
    let plane = tile / (tiles.x * tiles.y);
    if plane >= sizes.planes { return; }
    // Image and group.
    let which = vec2(plane / sizes.groups, plane % sizes.groups);
    let first = vec2(tile / tiles.y % tiles.x, tile % tiles.y) * TILE;
    let area = sizes.height * sizes.width;
    let own = which.y * sizes.channels * select(area, 1u, PIXELS == 1u);
    let part = Part(which.x * sizes.groups * sizes.channels * area + own, which.y * sizes.outputs * sizes.depth);

    // Half of the threads fetch what runs down, half what runs across, a block of 4 x 4 each; eight neighbours
    // different rows.
    let of_left = thread < 128u;
    let of_weights = of_left != (PIXELS == 1u);
    let fetched = thread % 128u;
    let fetched_row = fetched % 8u + fetched / (8u * STEPS) * 8u;
    let fetched_step = fetched / 8u % STEPS;
    let fetched_first = select(first.y, first.x, of_left) + 4u * fetched_row;

    let down = thread / 16u;
    let across = thread % 16u;
    var sums = mat4x4<f32>();
    var sums_right = mat4x4<f32>();
    var sums_below = mat4x4<f32>();
    var sums_beyond = mat4x4<f32>();
    var next = block(part, of_weights, fetched_first, 4u * fetched_step);
    for (var k = 0u; k < sizes.depth; k += DEPTH) {
        let turned = transpose(next);
        let to = 4u * fetched_step * BLOCKS + fetched_row;
        if of_left {
            left[to] = turned[0];
            left[to + BLOCKS] = turned[1];
            left[to + 2u * BLOCKS] = turned[2];
            left[to + 3u * BLOCKS] = turned[3];
        } else {
            right[to] = turned[0];
            right[to + BLOCKS] = turned[1];
            right[to + 2u * BLOCKS] = turned[2];
            right[to + 3u * BLOCKS] = turned[3];
        }
        workgroupBarrier();
        if k + DEPTH < sizes.depth { next = block(part, of_weights, fetched_first, k + DEPTH + 4u * fetched_step); }
        for (var i = 0u; i < DEPTH; i++) {
            let a = left[i * BLOCKS + down];
            let b = right[i * BLOCKS + across];
            sums = with_outer(sums, a, b);
            if TILE == 128u {
                let a_below = left[i * BLOCKS + 16u + down];
                let b_right = right[i * BLOCKS + 16u + across];
                sums_right = with_outer(sums_right, a, b_right);
                sums_below = with_outer(sums_below, a_below, b);
                sums_beyond = with_outer(sums_beyond, a_below, b_right);
            }
        }
        workgroupBarrier();
    }
    let at = first + 4u * vec2(down, across);
    put(which, sums, at.x, at.y);
    if TILE == 128u {
        put(which, sums_right, at.x, at.y + 64u);
        put(which, sums_below, at.x + 64u, at.y);
        put(which, sums_beyond, at.x + 64u, at.y + 64u);
    }
}
