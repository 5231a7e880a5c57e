// What the weights of a convolution get back, as a product for every group: cotangents [outputs, pixels] times columns
// [pixels, depth], the pixels of all images one after the other. A block computes a tile of outputs x depth over a part of
// the pixels; parts lie one after the other, [parts, outputs of all groups, depth].
#pragma once
#include "convolution.cuh"

// Pixels of all images, and of a part.
struct Pixels { u32 all, part; };

// What a block computes, tiles along the output channels first.
struct Tile { u32 first_output, first_k, group, part, first_pixel, end_pixel; };
DEVICE Tile tile_of(u32 block, u32 tile_m, u32 tile_n, const Convolution& c, const Pixels& pixels) {
    const u32 tiles_m = (c.outputs + tile_m - 1) / tile_m, tiles_n = (c.depth + tile_n - 1) / tile_n;
    const u32 m = block % tiles_m, n = block / tiles_m % tiles_n, rest = block / tiles_m / tiles_n;
    const u32 part = rest / c.groups, first = part * pixels.part;
    return {m * tile_m, n * tile_n, rest % c.groups, part, first, min(pixels.all, first + pixels.part)};
}

// A pixel of g: its image, and which of the image's pixels.
struct Pixel { u32 image, at; };
DEVICE Pixel pixel_of(u32 number, const Convolution& c) {
    const u32 area = c.out_height * c.out_width, image = number / area;
    return {image, number - image * area};
}

// Where the channels of an image's group begin in x.
DEVICE i64 image_at(u32 image, u32 group, const Convolution& c) {
    const u32 channels = c.depth / (KERNEL_H * KERNEL_W), area = c.height * c.width;
    return (i64)image * c.groups * channels * area + (i64)group * channels * (PIXELS ? 1 : area);
}
// Where an output of a group is in g.
DEVICE i64 cotangent_at(const Pixel& pixel, u32 group, u32 output, const Convolution& c) {
    const u32 area = c.out_height * c.out_width, all = c.outputs * c.groups, channel = group * c.outputs + output;
    return PIXELS ? ((i64)pixel.image * area + pixel.at) * all + channel
                  : ((i64)pixel.image * all + channel) * area + pixel.at;
}
// Where a sum goes.
DEVICE i64 sum_at(const Tile& tile, u32 output, u32 k, const Convolution& c) {
    return ((i64)(tile.part * c.groups + tile.group) * c.outputs + output) * c.depth + k;
}
