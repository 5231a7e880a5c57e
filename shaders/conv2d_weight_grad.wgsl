// dw = g * columns of x, summed over all pixels of all images, in planes or pixels, any geometry: for every group a product
// of cotangents [outputs, pixels] and columns [pixels, depth] that are gathered while they are read. A workgroup computes
// a tile of 64 outputs x 64 of the depth over a part of the pixels, a thread 4 x 4 of it, from slices of 32 pixels in
// shared memory. Parts lie one after the other, [parts, outputs of all groups, depth], and are added up by another launch.

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
    // Of all images, and of a part.
    pixels: u32,
    part: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> g: array<u32>;
fn g_at(i: u32) -> f32 { return bitcast<f32>(g[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
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

const SLICE: u32 = 32u;

var<workgroup> left: array<vec4<f32>, 512>;
var<workgroup> right: array<vec4<f32>, 512>;

// A pixel of g: which image, and which of its pixels.
struct Pixel { image: u32, at: u32 }

//: cotangents
// Of four neighbouring outputs of a group, zero behind the last.
fn cotangents_at(pixel: Pixel, group: u32, output: u32) -> vec4<f32> {
    var v = vec4(0.0);
    let area = sizes.out_height * sizes.out_width;
    let all = sizes.outputs * sizes.groups;
    for (var j = 0u; j < 4u; j++) {
        if output + j >= sizes.outputs { break; }
        let channel = group * sizes.outputs + output + j;
        let row = pixel.image * area + pixel.at;
        v[j] = g_at(select((pixel.image * all + channel) * area + pixel.at, row * all + channel, PIXELS == 1u));
    }
    return v;
}
//: end

// The pixel of the image that a pixel of g sees through a tap; what lies outside is past the ends.
fn seen(at: u32, tap: u32) -> vec2<u32> {
    let row = at / sizes.out_width * sizes.stride_y + tap / KERNEL_W * sizes.dilation_y - sizes.pad_y;
    let column = at % sizes.out_width * sizes.stride_x + tap % KERNEL_W * sizes.dilation_x - sizes.pad_x;
    return vec2(row, column);
}

//: columns
// Four neighbours along the depth of what a pixel sees, zero outside.
fn columns_at(pixel: Pixel, group: u32, k: u32) -> vec4<f32> {
    var v = vec4(0.0);
    let area = sizes.height * sizes.width;
    let all = sizes.channels * sizes.groups;
    for (var j = 0u; j < 4u; j++) {
        if k + j >= sizes.depth { break; }
        let taps = KERNEL_H * KERNEL_W;
        let channel = group * sizes.channels + select((k + j) / taps, (k + j) % sizes.channels, PIXELS == 1u);
        let place = seen(pixel.at, select((k + j) % taps, (k + j) / sizes.channels, PIXELS == 1u));
        if place.x >= sizes.height || place.y >= sizes.width { continue; }
        let at = place.x * sizes.width + place.y;
        v[j] = x_at(select((pixel.image * all + channel) * area + at, (pixel.image * area + at) * all + channel,
            PIXELS == 1u));
    }
    return v;
}
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let down = (sizes.outputs + 63u) / 64u;
    let across = (sizes.depth + 63u) / 64u;
    let tile = id.y * count.x + id.x;
    let group = tile / (down * across) % sizes.groups;
    let which = tile / (down * across * sizes.groups);
    if which * sizes.part >= sizes.pixels { return; }
    let first = vec2(tile / across % down, tile % across) * 64u;
    let end = min(sizes.pixels, (which + 1u) * sizes.part);
    let area = sizes.out_height * sizes.out_width;

    var sums = mat4x4<f32>();
    for (var start = which * sizes.part; start < end; start += SLICE) {
        for (var turn = 0u; turn < 2u; turn++) {
            // Neighbours in memory go to neighbouring threads: channels of pixels, pixels of planes.
            let i = turn * 256u + thread;
            let place = select(vec2(i % SLICE, i / SLICE), vec2(i / 16u, i % 16u), PIXELS == 1u);
            let number = start + place.x;
            let pixel = Pixel(number / area, number % area);
            var cotangents = vec4(0.0);
            var columns = vec4(0.0);
            if number < end {
                cotangents = cotangents_at(pixel, group, first.x + 4u * place.y);
                columns = columns_at(pixel, group, first.y + 4u * place.y);
            }
            left[place.x * 16u + place.y] = cotangents;
            right[place.x * 16u + place.y] = columns;
        }
        workgroupBarrier();
        for (var i = 0u; i < SLICE; i++) {
            sums = with_outer(sums, left[i * 16u + thread / 16u], right[i * 16u + thread % 16u]);
        }
        workgroupBarrier();
    }
    let output = first.x + 4u * (thread / 16u);
    let k = first.y + 4u * (thread % 16u);
    for (var i = 0u; i < 4u; i++) {
        if output + i >= sizes.outputs { break; }
        let row = (which * sizes.groups + group) * sizes.outputs + output + i;
        for (var j = 0u; j < 4u; j++) {
            if k + j < sizes.depth { y_set(row * sizes.depth + k + j, sums[i][j]); }
        }
    }
}
