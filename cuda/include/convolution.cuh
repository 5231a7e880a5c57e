// A convolution as a product for every image and group: weights [outputs, depth] times columns [depth, pixels], row
// (channel, ky, kx) of the columns being the image shifted by a tap; row (ky, kx, channel) where the channels of a
// pixel lie side by side.
//
// Macros: KERNEL_H, KERNEL_W the taps; PIXELS 1 for images [N, H, W, C] and weights [O, kh, kw, C], 0 for planes.
#pragma once
#include "types.cuh"

struct Convolution {
    // Of one group: output channels, input channels times taps.
    u32 outputs, depth;
    u32 groups, height, width, out_height, out_width;
    u32 stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
};

// Where the window of a result pixel begins in the image; may lie outside.
struct Window { i32 y, x; };
DEVICE Window window_of(u32 pixel, const Convolution& c) {
    const u32 row = pixel / c.out_width, column = pixel - row * c.out_width;
    return {(i32)(row * c.stride_y) - (i32)c.pad_y, (i32)(column * c.stride_x) - (i32)c.pad_x};
}

// A row of the columns: the channel's plane and the place of the tap in the window.
struct Tap { u32 plane; i32 y, x; };
DEVICE Tap tap_of(u32 k, const Convolution& c) {
    const u32 taps = KERNEL_H * KERNEL_W, channels = c.depth / taps;
    const u32 channel = PIXELS ? k % channels : k / taps, tap = PIXELS ? k / channels : k % taps;
    return {PIXELS ? channel : channel * (c.height * c.width), (i32)(tap / KERNEL_W * c.dilation_y),
        (i32)(tap % KERNEL_W * c.dilation_x)};
}

// Where the element of the columns lies behind the image's channels, and whether it lies inside.
struct Place { u32 at; bool inside; };
DEVICE Place place_of(const Window& window, const Tap& tap, const Convolution& c) {
    const i32 row = window.y + tap.y, column = window.x + tap.x;
    const u32 pitch = PIXELS ? c.depth / (KERNEL_H * KERNEL_W) * c.groups : 1;
    return {tap.plane + ((u32)row * c.width + (u32)column) * pitch, (u32)row < c.height && (u32)column < c.width};
}
// The element of the columns: of the image's channels from `x`, zero outside.
template <class T> DEVICE T column_at(const T* x, const Window& window, const Tap& tap, const Convolution& c) {
    const Place place = place_of(window, tap, c);
    T value = {};
    if (place.inside) value = x[place.at];
    return value;
}

// The part of a result that a block computes, tiles along the output channels first.
struct Part {
    u32 first_output, first_pixel, image, group;
    // Of the image's group in x, of the group in w; of the image's group in y.
    i64 x, w, y;
};
DEVICE Part part_of(u32 block, u32 tile_m, u32 tile_n, const Convolution& c) {
    const u32 pixels = c.out_height * c.out_width, channels = c.depth / (KERNEL_H * KERNEL_W);
    const u32 tiles_m = (c.outputs + tile_m - 1) / tile_m, tiles_n = (pixels + tile_n - 1) / tile_n;
    const u32 m = block % tiles_m, n = block / tiles_m % tiles_n, plane = block / tiles_m / tiles_n;
    const u32 image = plane / c.groups, group = plane % c.groups;
    const i64 from = (i64)c.groups * channels * (c.height * c.width), to = (i64)c.groups * c.outputs * pixels;
    return {m * tile_m, n * tile_n, image, group,
        image * from + (i64)group * channels * (PIXELS ? 1 : c.height * c.width), (i64)group * c.outputs * c.depth,
        image * to + (i64)group * c.outputs * (PIXELS ? 1 : pixels)};
}
// The position of an element of the result.
DEVICE i64 result_at(const Part& part, u32 output, u32 pixel, const Convolution& c) {
    if (PIXELS) return part.y + (i64)pixel * (c.outputs * c.groups) + output;
    return part.y + (i64)output * (c.out_height * c.out_width) + pixel;
}
